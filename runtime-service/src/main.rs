//! `berthd`: the verbs serve, check and config.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use berth_runtime_service::config::{Config, DEFAULT_TOML, LogFormat};
use berth_runtime_service::{check, serve};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// berth's node daemon.
#[derive(Parser)]
#[command(name = "berthd", version, about = "Runs pods for a kubelet: CRI v1 on a unix socket")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve CRI until SIGTERM. Containers go on when the daemon ends.
    Serve(Options),
    /// Look at this host: what is missing for running pods, and what to do about it.
    Check(Options),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Names of the steps at which a test can kill this daemon.
    #[cfg(feature = "failpoints")]
    Failpoints,
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Print the default configuration with comments.
    Default,
}

#[derive(clap::Args)]
struct Options {
    /// Configuration file [default: /etc/berth/config.toml, if it is there]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Socket: unix:///PATH
    #[arg(long)]
    listen: Option<String>,
    /// Directory for what survives a boot
    #[arg(long)]
    data_root: Option<PathBuf>,
    /// Directory for what does not; on a tmpfs
    #[arg(long)]
    run_root: Option<PathBuf>,
}

impl Options {
    fn load(self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref()).context("configuration")?;
        let serve = &mut config.serve;
        serve.listen = self.listen.unwrap_or_else(|| std::mem::take(&mut serve.listen));
        serve.data_root = self.data_root.unwrap_or_else(|| std::mem::take(&mut serve.data_root));
        serve.run_root = self.run_root.unwrap_or_else(|| std::mem::take(&mut serve.run_root));
        Ok(config)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Config(ConfigVerb::Default) => print!("{DEFAULT_TOML}"),
        Verb::Check(options) => return Ok(check::run(&options.load()?)),
        Verb::Serve(options) => {
            let config = options.load()?;
            start_log(&config)?;
            runtime()?.block_on(serve::serve(config))?;
        }
        #[cfg(feature = "failpoints")]
        Verb::Failpoints => berth_runtime_service::failpoint::names().iter().for_each(|name| println!("{name}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Two workers: the daemon waits far more than it computes.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).max_blocking_threads(64).enable_all().build().context("start the async workers")
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&config.log.level).with_context(|| format!("[log] level {:?}", config.log.level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
