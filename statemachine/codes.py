"""Codes of refusals. A code is in the log for ever: add at the end of a group, never renumber."""

from enum import IntEnum


class Code(IntEnum):
    """What `apply` answers. `ok` aside, each is a refusal; its lower-case name is the word on the wire."""

    ok = 0

    # about the key
    key_required = 10
    key_reused = 11
    key_too_old = 12
    key_quota_exceeded = 13
    sent_in_future = 14

    # what is named does not exist, or does already
    account_not_found = 20
    account_exists = 21
    asset_not_found = 22
    asset_exists = 23
    instrument_not_found = 24
    instrument_exists = 25
    order_not_found = 26
    withdrawal_not_found = 27
    session_not_found = 28
    session_exists = 29

    # money
    accounts_must_differ = 40
    insufficient_funds = 41
    supply_exceeded = 42
    account_reserved = 43

    # listing
    assets_must_differ = 50
    inexact_instrument = 51
    bad_limits = 52
    bad_calendar = 53

    # trading state
    instrument_halted = 60
    instrument_cancel_only = 61
    instrument_post_only = 62
    market_closed = 63
    no_reference = 64
    stale_reference = 65
    price_out_of_band = 66
    would_cross = 67
    writes_stopped = 68
    older_reference = 69

    # the order's own fields
    price_required = 80
    price_not_allowed = 81
    quantity_required = 82
    budget_not_allowed = 83
    time_in_force_not_allowed = 84
    expiry_required = 85
    expiry_in_past = 86
    quantity_too_small = 87
    quantity_too_large = 88
    notional_too_small = 89
    notional_too_large = 90
    open_orders_limit = 91
    below_filled = 92
    nothing_to_replace = 93
    post_only_not_allowed = 94
    sessions_limit = 95
    withdrawals_limit = 96

    # rules
    unknown_rules = 110
