"""Each channel against a real server: what is sent, how it is signed, where it may not go, and what a refusal means."""

import ipaddress
import ssl
import time
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from cluster.certificates import make_authority, make_certificate
from gateway.notify.addresses import Guard, is_public
from gateway.notify.mail import MailSender, Security, SmtpSettings
from gateway.notify.notice import Kind, Later, Never, Notice
from gateway.notify.signing import ID_HEADER, SIGNATURE_HEADER, sign, verify
from gateway.notify.webhook import ProviderSender, WebhookSender
from gateway.prefs.fields import Channel, Preferences
from tests.cluster.engines import free_port
from tests.gateway.notify.servers import HOST, Hook, Mailbox

NOTICE = Notice(
    "x/dc-a.1/1/0",
    "ann",
    Kind.price_alert,
    1_700_000_000_000_000,
    "AAPL above 200: 201.5",
    {"symbol": "AAPL", "price": "201.5"},
)
SECRET, TOKEN = "s" * 20, "t" * 20
ANN = Preferences(
    email="ann@example.com",
    phone="+436601234567",
    push_token=TOKEN,
    webhook_url="https://hooks.example.com/",
    webhook_secret=SECRET,
)


def webhook(*allowed: str, plain_http: bool = True) -> WebhookSender:
    return WebhookSender(Guard(allowed), plain_http=plain_http)


# -- webhooks --------------------------------------------------------------------------------------


async def test_a_webhook_gets_a_signed_notice() -> None:
    async with Hook() as hook:
        sender = webhook("127.0.0.0/8")
        await sender.send(NOTICE, structs.replace(ANN, webhook_url=hook.url("a?b=1")))
        await sender.close()
        ((path, headers, body),) = hook.got
    assert path == "/a"
    assert headers[ID_HEADER] == NOTICE.notice_id
    assert verify(SECRET, headers[SIGNATURE_HEADER], body, int(time.time()))
    assert not verify("another secret", headers[SIGNATURE_HEADER], body, int(time.time()))
    assert msgspec.json.decode(body) == {
        "id": NOTICE.notice_id,
        "user": "ann",
        "kind": "price_alert",
        "at_us": NOTICE.at_us,
        "subject": NOTICE.subject,
        "details": NOTICE.details,
    }


def test_a_signature_is_of_one_body_one_secret_and_one_time() -> None:
    header = sign(SECRET, b"body", 1_000)
    assert verify(SECRET, header, b"body", 1_000 + 300)
    assert not verify(SECRET, header, b"body", 1_000 + 301)
    assert not verify(SECRET, header, b"other", 1_000)
    assert not verify(SECRET, header.replace("t=1000", "t=1001"), b"body", 1_000)
    for junk in ("", "t=,v1=", "v1=00", "t=1000", "t=-5,v1=x", "t=١,v1=x", "t=" + "9" * 500):
        assert not verify(SECRET, junk, b"body", 1_000)


STATUSES = [
    (200, None, 0),
    (204, None, 0),
    (301, Never, 0),
    (400, Never, 0),
    (404, Never, 0),
    (410, Never, 0),
    (408, Later, 0),
    (429, Later, 7),
    (500, Later, 0),
    (503, Later, 7),
]


@pytest.mark.parametrize(("status", "raised", "asked_s"), STATUSES)
async def test_what_an_answer_means(status: int, raised: type[Exception] | None, asked_s: int) -> None:
    async with Hook() as hook:
        hook.statuses = [status]
        hook.headers = {"Location": hook.url("elsewhere")} | ({"Retry-After": str(asked_s)} if asked_s else {})
        sender = webhook("127.0.0.0/8")
        preferences = structs.replace(ANN, webhook_url=hook.url())
        if raised is None:
            await sender.send(NOTICE, preferences)
        else:
            with pytest.raises(raised, match=str(status)) as caught:
                await sender.send(NOTICE, preferences)
            if isinstance(caught.value, Later):
                assert caught.value.retry_after_s == asked_s
        await sender.close()
        assert len(hook.got) == 1, "no redirect is followed"


async def test_a_webhook_that_is_away_is_tried_later_and_its_url_is_not_told() -> None:
    sender = webhook("127.0.0.0/8")
    with pytest.raises(Later) as caught:
        await sender.send(NOTICE, structs.replace(ANN, webhook_url=f"http://{HOST}:{free_port()}/secret-path"))
    await sender.close()
    assert "secret-path" not in str(caught.value)
    assert HOST not in str(caught.value)


ANYWHERE = ".".join("0000")
PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", ANYWHERE,
    "224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1",
    "::ffff:10.0.0.1", "2002:0a00:0001::", "64:ff9b::10.0.0.1", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_private_address_is_not_called(address: str) -> None:
    guard = Guard()
    with pytest.raises(Never):
        guard.check(address)
    sender = WebhookSender(guard, plain_http=True)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Never):
        await sender.send(NOTICE, structs.replace(ANN, webhook_url=f"http://{host}:1/"))
    await sender.close()


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"])
def test_a_public_address_is(address: str) -> None:
    Guard().check(address)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
async def test_a_name_of_a_private_address_is_not_called(host: str) -> None:
    async with Hook() as hook:
        sender = webhook()
        with pytest.raises((Never, Later)):
            await sender.send(NOTICE, structs.replace(ANN, webhook_url=f"http://{host}:{hook.port}/"))
        await sender.close()
        assert hook.got == []


def test_an_allowed_network_is_called_and_no_other() -> None:
    guard = Guard(["10.1.0.0/16", "fd00::/8"])
    guard.check("10.1.2.3")
    guard.check("fd00::7")
    with pytest.raises(Never):
        guard.check("10.2.0.1")
    assert not is_public(ipaddress.ip_address("10.1.2.3"))


async def test_only_https_is_called_unless_configured_and_nothing_unsigned() -> None:
    sender = webhook("127.0.0.0/8", plain_http=False)
    with pytest.raises(Never, match="https"):
        await sender.send(NOTICE, structs.replace(ANN, webhook_url="http://127.0.0.1/"))
    for missing in ("webhook_url", "webhook_secret"):
        with pytest.raises(Never, match="webhook_secret"):
            await sender.send(NOTICE, structs.replace(ANN, **{missing: None}))
    await sender.close()


@pytest.mark.parametrize(("channel", "to"), [(Channel.sms, ANN.phone), (Channel.push, ANN.push_token)])
async def test_sms_and_push_go_to_the_operators_provider(channel: Channel, to: str) -> None:
    async with Hook() as hook:
        sender = ProviderSender(channel, hook.url("provider"), SECRET)
        await sender.send(NOTICE, ANN)
        with pytest.raises(Never, match="no address"):
            await sender.send(NOTICE, Preferences())
        await sender.close()
        ((_, headers, body),) = hook.got
    assert msgspec.json.decode(body) == {"id": NOTICE.notice_id, "to": to, "text": NOTICE.subject}
    assert verify(SECRET, headers[SIGNATURE_HEADER], body, int(time.time()))


# -- e-mail ----------------------------------------------------------------------------------------


def mail(port: int, **more: object) -> MailSender:
    settings = SmtpSettings(HOST, port, "alerts@tiebreak.example", security=Security.none)
    return MailSender(structs.replace(settings, **more))


async def test_a_letter_arrives() -> None:
    async with Mailbox() as box:
        sender = mail(box.port)
        await sender.send(NOTICE, ANN)
        await sender.send(NOTICE, ANN)
        await sender.close()
        (to, text), (_, again) = box.letters
    assert to == "ann@example.com"
    assert "Subject: AAPL above 200: 201.5" in text
    assert "price: 201.5" in text
    assert NOTICE.notice_id in text
    assert "Auto-Submitted: auto-generated" in text
    # Mailboxes that drop repeats know it by this.
    ids = [line for letter in (text, again) for line in letter.splitlines() if line.startswith("Message-ID")]
    assert len(ids) == 2
    assert ids[0] == ids[1]


REPLIES = [
    ("RCPT", "550 no such user", Never),
    ("RCPT", "450 later", Later),
    ("MAIL", "451 later", Later),
    ("END", "554 spam", Never),
    ("END", "452 full", Later),
    ("EHLO", "421 busy", Later),
]


@pytest.mark.parametrize(("verb", "reply", "raised"), REPLIES)
async def test_what_a_server_says_is_never_or_later(verb: str, reply: str, raised: type[Exception]) -> None:
    async with Mailbox() as box:
        box.replies = {verb: [reply, reply], "HELO": [reply]}
        sender = mail(box.port)
        with pytest.raises(raised):
            await sender.send(NOTICE, ANN)
        await sender.close()
        assert box.letters == []


async def test_a_server_that_is_away_is_tried_later() -> None:
    sender = mail(free_port())
    with pytest.raises(Later):
        await sender.send(NOTICE, ANN)
    with pytest.raises(Never, match="no address"):
        await sender.send(NOTICE, Preferences())
    await sender.close()


def server_tls(folder: Path) -> ssl.SSLContext:
    make_authority(folder, "c")
    make_certificate(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "localhost.crt", folder / "localhost.key")
    return context


async def test_over_tls_with_a_password(tmp_path: Path) -> None:
    async with Mailbox(starttls=server_tls(tmp_path)) as box:
        more = {"host": "localhost", "user": "us", "password": SECRET}
        sender = mail(box.port, security=Security.starttls, ca=tmp_path / "ca.crt", **more)
        await sender.send(NOTICE, ANN)
        await sender.close()
        assert len(box.letters) == 1
        assert len(box.logins) == 1
        assert set(box.in_the_clear) == {"EHLO", "STARTTLS"}


async def test_without_the_tls_that_it_must_have_nothing_is_said(tmp_path: Path) -> None:
    async with Mailbox() as plain:
        sender = mail(plain.port, security=Security.starttls)
        with pytest.raises(Later):
            await sender.send(NOTICE, ANN)
        assert plain.in_the_clear == ["EHLO"]
        await sender.close()
    async with Mailbox(starttls=server_tls(tmp_path)) as foreign:
        sender = mail(foreign.port, host="localhost", security=Security.starttls)  # an authority that we do not know
        with pytest.raises(Later):
            await sender.send(NOTICE, ANN)
        await sender.close()
        assert foreign.letters == []
    with pytest.raises(ValueError, match="in the clear"):
        mail(1, user="us", password=SECRET)
