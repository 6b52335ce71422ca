//! This process's own terminal while it is another's: raw, and its size told.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::spdy::Output;

/// The terminal is raw as long as this is there.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` when standard input is no terminal.
    pub(super) fn set() -> io::Result<Option<Self>> {
        let Ok(before) = tcgetattr(rustix::stdio::stdin()) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Tells the window's size, now and whenever it changes.
pub(super) async fn tell_sizes(to: Option<Output>) {
    let Some(to) = to else { return };
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdout()) {
            let told = format!("{{\"Width\":{},\"Height\":{}}}\n", size.ws_col, size.ws_row);
            if to.write(told.as_bytes()).await.is_err() {
                return;
            }
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}
