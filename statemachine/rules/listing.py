"""Rules for assets, instruments and what an instrument accepts."""

from statemachine.calendar import calendar_is_valid
from statemachine.codes import Code
from statemachine.commands import (
    ActivateRules,
    AddAsset,
    AddInstrument,
    SetCalendar,
    SetFees,
    SetLimits,
    SetMode,
    SetReference,
)
from statemachine.events import AssetAdded, ReferenceSet, RulesActivated
from statemachine.instrument import Instrument, limits_are_valid, unit_sizes
from statemachine.records import AssetRecord, InstrumentRecord
from statemachine.results import AnyResult, Done
from statemachine.state import State, refused
from statemachine.types import REFERENCE_AHEAD_US_MAX, Mode

DONE = Done()


def add_asset(state: State, command: AddAsset) -> AnyResult:
    if command.asset in state.assets:
        return refused(Code.asset_exists)

    # ---- every refusal is above this line ----
    record = AssetRecord(command.asset, command.scale, command.supply_units_max)
    state.assets[command.asset] = record
    state.dirty_assets.append(record)
    state.events.append(AssetAdded(command.asset, command.scale, command.supply_units_max))
    return DONE


def add_instrument(state: State, command: AddInstrument) -> AnyResult:
    if command.symbol in state.instruments:
        return refused(Code.instrument_exists)
    if command.base == command.quote:
        return refused(Code.assets_must_differ)
    base = state.assets.get(command.base)
    quote = state.assets.get(command.quote)
    if base is None or quote is None:
        return refused(Code.asset_not_found)
    if 0 in unit_sizes(command, base.scale, quote.scale):
        return refused(Code.inexact_instrument)
    if not limits_are_valid(command.limits):
        return refused(Code.bad_limits)
    if not calendar_is_valid(command.calendar):
        return refused(Code.bad_calendar)

    # ---- every refusal is above this line ----
    record = InstrumentRecord(
        command.symbol,
        command.base,
        command.quote,
        command.price_scale,
        command.quantity_scale,
        command.tick,
        command.lot,
        Mode.trading,
        command.maker_bps,
        command.taker_bps,
        command.limits,
        command.calendar,
        0,
        0,
        0,
    )
    instrument = Instrument(record, base.scale, quote.scale)
    state.instruments[command.symbol] = instrument
    return changed(state, instrument)


def changed(state: State, instrument: Instrument) -> AnyResult:
    instrument.dirty = True
    state.events.append(instrument.changed())
    return DONE


def set_mode(state: State, command: SetMode) -> AnyResult:
    if command.symbol and command.symbol not in state.instruments:
        return refused(Code.instrument_not_found)

    # ---- every refusal is above this line ----
    for symbol in [command.symbol] if command.symbol else sorted(state.instruments):
        instrument = state.instruments[symbol]
        instrument.mode = command.mode
        changed(state, instrument)
    return DONE


def set_fees(state: State, command: SetFees) -> AnyResult:
    instrument = state.instruments.get(command.symbol)
    if instrument is None:
        return refused(Code.instrument_not_found)

    # ---- every refusal is above this line ----
    instrument.maker_bps = command.maker_bps
    instrument.taker_bps = command.taker_bps
    return changed(state, instrument)


def set_limits(state: State, command: SetLimits) -> AnyResult:
    instrument = state.instruments.get(command.symbol)
    if instrument is None:
        return refused(Code.instrument_not_found)
    if not limits_are_valid(command.limits):
        return refused(Code.bad_limits)

    # ---- every refusal is above this line ----
    instrument.limits = command.limits
    return changed(state, instrument)


def set_calendar(state: State, command: SetCalendar) -> AnyResult:
    instrument = state.instruments.get(command.symbol)
    if instrument is None:
        return refused(Code.instrument_not_found)
    if not calendar_is_valid(command.calendar):
        return refused(Code.bad_calendar)

    # ---- every refusal is above this line ----
    instrument.calendar = command.calendar
    instrument.forget_opening()
    return changed(state, instrument)


def set_reference(state: State, command: SetReference) -> AnyResult:
    instrument = state.instruments.get(command.symbol)
    if instrument is None:
        return refused(Code.instrument_not_found)
    if command.observed_at_us > state.now_us + REFERENCE_AHEAD_US_MAX:
        return refused(Code.sent_in_future, state.now_us + REFERENCE_AHEAD_US_MAX, command.observed_at_us)
    if command.observed_at_us <= instrument.reference_at_us:
        return refused(Code.older_reference, instrument.reference_at_us, command.observed_at_us)

    # ---- every refusal is above this line ----
    instrument.reference_ticks = command.price_ticks
    instrument.reference_at_us = command.observed_at_us
    instrument.dirty = True
    state.events.append(ReferenceSet(command.symbol, command.price_ticks, command.observed_at_us))
    return DONE


def activate_rules(state: State, command: ActivateRules) -> AnyResult:
    """Never back and never the same again. Versions that this program does not know never come this far."""
    if command.version <= state.rules_version:
        return refused(Code.unknown_rules, state.rules_version + 1, command.version)

    # ---- every refusal is above this line ----
    state.rules_version = command.version
    state.events.append(RulesActivated(command.version))
    return DONE
