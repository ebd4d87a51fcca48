//! Floor 7: arguments, terminal and progress; one file per verb.

/// Runs the program and returns its exit code.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
