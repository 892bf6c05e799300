//! The one binary: see `realtime --help`.

/// When ten thousand clients leave, their memory goes back to the system; the system's own allocator would keep it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    realtime_operator::cli::main()
}
