//! Everything that crosses a process or a room, in one binary.

mod architecture;
mod cli;
mod dispatcher;
mod edge;
mod generated;
#[cfg(feature = "rehearsal")]
mod rehearsal;
