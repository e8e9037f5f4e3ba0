//! Laws of the core. `world` is everything around it, virtual; the other files are laws by subject, and `histories` drives
//! the core with random ones.

mod fleet;
mod histories;
mod pauses;
mod residency;
mod store;
mod workers;
mod world;
