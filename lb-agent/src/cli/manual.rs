use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Command};
use clap_mangen::Man;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The command that the page is of: `service list`, for instance; without one that of lb-agent itself.
    #[arg(conflicts_with = "dir")]
    command: Vec<String>,
    /// Write the pages of lb-agent and all of its commands there, as `lb-agent.1`, `lb-agent-service-list.1` and so on.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn print(arguments: &Arguments, command: Command) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    if let Some(dir) = &arguments.dir {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        return clap_mangen::generate_to(command, dir).with_context(|| dir.display().to_string());
    }
    // Gives the commands within commands their whole names.
    command.build();
    let mut asked = &command;
    let mut title = command.get_name().to_owned();
    for name in &arguments.command {
        let Some(found) = asked.find_subcommand(name) else { bail!("{title} has no command {name}") };
        title = format!("{title}-{name}");
        asked = found;
    }
    let mut page = Vec::new();
    Man::new(asked.clone()).title(title).render(&mut page)?;
    match io::stdout().lock().write_all(&page) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
