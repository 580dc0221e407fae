//! The program; all of it is in the library, so that tests and fuzzing reach it too.

fn main() -> std::process::ExitCode {
    cli::main()
}
