"""The workloads, by name."""

from chaos.workloads.ap import Ap
from chaos.workloads.bank import Bank
from chaos.workloads.idempotence import Idempotence
from chaos.workloads.journal import Journals
from chaos.workloads.orders import Orders
from chaos.workloads.reads import Reads
from chaos.workloads.register import Registers
from chaos.workloads.storm import Storm
from chaos.workloads.upgrade import Upgrade
from chaos.workloads.workload import Workload

WORKLOADS: dict[str, type[Workload]] = {
    one.name: one for one in (Bank, Orders, Idempotence, Registers, Journals, Reads, Ap, Storm, Upgrade)
}
