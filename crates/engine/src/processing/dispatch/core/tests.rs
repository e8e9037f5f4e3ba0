//! Laws of the core.
