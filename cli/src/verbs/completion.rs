//! Completion scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::error::Error;
use crate::output;

#[derive(clap::Args)]
pub(crate) struct Completion {
    /// bash, zsh or fish, and some others
    #[arg(default_value = "bash")]
    shell: Shell,
}

impl Completion {
    pub(crate) fn print(&self) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Args::command(), "berth", &mut script);
        output::print(script)
    }
}
