"""The words under which links count what they refuse, and what each means: for logs, metrics and alerts."""

import ssl

REFUSALS = {
    "refused_certificate": "no certificate, one of another authority, or one whose time is over or not yet there",
    "refused_handshake": "no TLS, an older TLS than 1.3, bytes of an old connection, or nothing in time",
    "refused_name": "a certificate of ours that names no member, us, or another than who was dialed or says hello",
    "refused_stranger": "a good certificate and hello of one who is not among the members, or no longer",
    "refused_cluster": "another cluster, or another of its histories",
    "refused_protocol": "another version of the protocol",
    "refused_garbage": "frames that are no messages, or not the ones that are due",
    "refused_length": "a frame beyond the bound",
    "refused_superseded": "frames of a connection that a newer one of the same member has replaced",
    "refused_crowd": "too many in a handshake at once",
    "refused_rate": "too many handshakes in a second",
    "certificates_refused": "new certificate files that can't be used",
    "silent": "links given up because nothing was heard",
    "overfull": "links given up because too much waited to be sent",
    "reading_paused": "moments in which a peer that sent too much was not read",
    "accept_failed": "connections that this machine could not take, out of descriptors, say",
}


def of_handshake(error: BaseException) -> str:
    """Which of them a handshake's error is."""
    no_certificate = isinstance(error, ssl.SSLError) and error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    if no_certificate or isinstance(error, ssl.SSLCertVerificationError):
        return "refused_certificate"
    return "refused_handshake"
