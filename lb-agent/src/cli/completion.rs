use std::io::{self, Write as _};

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn print(arguments: &Arguments, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    let script = String::from_utf8(script)?;
    // clap_complete calls what is to be completed by one name where it finds out, and by another where it completes, if
    // the program's name has a hyphen (https://github.com/clap-rs/clap/issues/6421).
    let script = script.replace("lb__subcmd__agent__subcmd__", "lb__agent__subcmd__");
    match io::stdout().lock().write_all(script.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
