//! The binary: hands the command line and the environment to `cli`.

fn main() -> std::process::ExitCode {
    jetforge::cli::main()
}
