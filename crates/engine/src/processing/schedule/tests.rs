//! Laws of the scheduler: whose turn it is (`lanes`), and which worker suits a demand and what must happen there
//! (`placement`). What follows from several decisions together is in the laws of the core.

mod lanes;
mod placement;
