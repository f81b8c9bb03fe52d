"""The workloads, by name."""

from chaos.work.ap import Ap
from chaos.work.bank import Bank
from chaos.work.idempotence import Idempotence
from chaos.work.journal import Journals
from chaos.work.orders import Orders
from chaos.work.reads import Reads
from chaos.work.register import Registers
from chaos.work.storm import Storm
from chaos.work.upgrade import Upgrade
from chaos.work.workload import Workload

WORKLOADS: dict[str, type[Workload]] = {
    one.name: one for one in (Bank, Orders, Idempotence, Registers, Journals, Reads, Ap, Storm, Upgrade)
}
