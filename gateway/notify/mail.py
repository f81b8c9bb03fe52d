"""Delivery by e-mail: SMTP with the standard library, in threads of its own."""

import asyncio
import smtplib
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path

from msgspec import Struct

from gateway.notify.notice import Later, Never, Notice
from gateway.prefs.fields import Preferences

TIMEOUT_S = 15.0
THREADS = 4


class Security(StrEnum):
    none = "none"
    starttls = "starttls"
    tls = "tls"


class SmtpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """sender: the address in From. ca: a PEM file to trust beside the system's authorities."""

    host: str
    port: int
    sender: str
    security: Security = Security.starttls
    user: str = ""
    password: str = ""
    ca: Path | None = None


class MailSender:
    """Without TLS it sends no password, and an address is not passed on to a server that refuses TLS when it must."""

    def __init__(self, settings: SmtpSettings) -> None:
        if settings.user and settings.security is Security.none:
            raise ValueError("user is set, security is 'none': a password is not sent in the clear")
        self._settings = settings
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="smtp")

    async def send(self, notice: Notice, preferences: Preferences) -> None:
        if preferences.email is None:
            raise Never("no address for email")
        message = message_of(notice, self._settings.sender, preferences.email)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._deliver, message)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, message: EmailMessage) -> None:
        try:
            with self._connect() as smtp:
                if self._settings.user:
                    smtp.login(self._settings.user, self._settings.password)
                smtp.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            code = max((code for code, _ in error.recipients.values()), default=0)
            raise _by_code(code, "the recipient was refused") from error
        except (smtplib.SMTPAuthenticationError, smtplib.SMTPNotSupportedError) as error:
            # Ours to set right, not the user's: the message waits.
            raise Later(type(error).__name__) from error
        except smtplib.SMTPResponseException as error:
            raise _by_code(error.smtp_code, f"SMTP {error.smtp_code}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise Later(f"{type(error).__name__}: {error}") from error

    def _connect(self) -> smtplib.SMTP:
        settings = self._settings
        context = ssl.create_default_context()
        if settings.ca is not None:
            context.load_verify_locations(settings.ca)
        if settings.security is Security.tls:
            return smtplib.SMTP_SSL(settings.host, settings.port, timeout=TIMEOUT_S, context=context)
        smtp = smtplib.SMTP(settings.host, settings.port, timeout=TIMEOUT_S)
        if settings.security is Security.starttls:
            try:
                smtp.starttls(context=context)
            except BaseException:
                smtp.close()
                raise
        return smtp


def _by_code(code: int, why: str) -> Later | Never:
    return Never(f"{why} ({code})") if 500 <= code < 600 else Later(f"{why} ({code})")


def message_of(notice: Notice, sender: str, to: str) -> EmailMessage:
    """Its Message-ID is the same each time, so that mailboxes that drop repeats can."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = to
    message["Subject"] = notice.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(notice.at_us / 1_000_000, UTC))
    name = blake2b(f"{notice.user}\0{notice.notice_id}".encode(), digest_size=16).hexdigest()
    message["Message-ID"] = f"<{name}@{sender.rpartition('@')[2] or 'tiebreak'}>"
    message["Auto-Submitted"] = "auto-generated"
    lines = [notice.subject, "", *(f"{name}: {value}" for name, value in notice.details.items()), ""]
    lines.append(f"This message has the id {notice.notice_id}; it may come more than once.")
    message.set_content("\n".join(lines))
    return message
