//! Everything that crosses a process or a room, in one binary.

mod architecture;
mod dispatcher;
mod edge;
