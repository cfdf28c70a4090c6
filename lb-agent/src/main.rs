//! `lb-agent`: see `lb-agent --help`.

mod cli;
mod events;
mod health;
mod metrics;
mod run;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
