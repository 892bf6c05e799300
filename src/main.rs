//! The one binary: see `realtime --help`.

fn main() -> std::process::ExitCode {
    realtime_operator::cli::main()
}
