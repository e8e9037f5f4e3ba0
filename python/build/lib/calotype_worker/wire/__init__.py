"""The messages, equal to the Rust types of `crates/protocol`; golden conversations under `schema/golden` hold both.

    words   what both directions share      down   orchestrator to worker
    work    what a job asks for             up     worker to orchestrator
    codec   to JSON and back

Unknown fields are ignored; an unknown `type` is an error of the peer that sent it. A field that is None is not
written. Sizes are pixels and times milliseconds unless a name says otherwise. Nothing here knows a pipe or a model.
"""
