//! Shows a pull layer by layer: on a terminal a few lines that are drawn over, elsewhere a line for each layer done.

use std::io::{IsTerminal, Write};

use berth_api::pull::pull_progress::layer::State;
use berth_api::pull::pull_progress::{Layer, Resolved};

use crate::human::size;
use crate::output::short;

/// Most layers drawn at a time; the others are in the count below them.
const SHOWN_MAX: usize = 12;
/// Characters of a bar.
const BAR: usize = 24;

pub(crate) struct Progress<W> {
    out: W,
    terminal: bool,
    layers: Vec<Layer>,
    /// Lines drawn on the terminal, to be drawn over.
    drawn: usize,
}

impl Progress<std::io::Stderr> {
    pub(crate) fn on_stderr() -> Self {
        Self::new(std::io::stderr(), std::io::stderr().is_terminal())
    }
}

impl<W: Write> Progress<W> {
    fn new(out: W, terminal: bool) -> Self {
        Self { out, terminal, layers: Vec::new(), drawn: 0 }
    }

    pub(crate) fn resolved(&mut self, resolved: &Resolved) {
        self.say(&format!("{} is {}, {} layers\n", resolved.reference, resolved.digest, resolved.layers.len()));
        let known = |digest: &String| Layer { digest: digest.clone(), ..Default::default() };
        self.layers = resolved.layers.iter().map(known).collect();
    }

    pub(crate) fn layer(&mut self, layer: Layer) {
        let done = matches!(layer.state(), State::Ready | State::Present);
        if done && !self.terminal {
            self.say(&format!("{}\n", text(&layer)));
        }
        match self.layers.iter_mut().find(|known| known.digest == layer.digest) {
            Some(known) => *known = layer,
            None => self.layers.push(layer),
        }
        if self.terminal {
            self.draw();
        }
    }

    /// Takes the drawing away, so that the answer or the error stands alone.
    pub(crate) fn finish(&mut self) {
        if self.drawn > 0 {
            self.say(&format!("\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
    }

    fn draw(&mut self) {
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let lines = self.picture();
        self.drawn = lines.len();
        let body: String = lines.iter().map(|line| format!("\x1b[2K{line}\n")).collect();
        self.say(&format!("{up}{body}\x1b[J"));
    }

    fn picture(&self) -> Vec<String> {
        let state = |wanted: State| self.layers.iter().filter(move |layer| layer.state() == wanted);
        let mut lines: Vec<String> = state(State::Pulling).take(SHOWN_MAX).map(text).collect();
        let done = state(State::Ready).count() + state(State::Present).count();
        let received: u64 = self.layers.iter().map(|layer| layer.received_bytes).sum();
        lines.push(format!("{done} of {} layers, {} received", self.layers.len(), size(received)));
        lines
    }

    /// Progress that cannot be shown is not worth failing for.
    fn say(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

fn text(layer: &Layer) -> String {
    let id = short(&layer.digest);
    match layer.state() {
        State::Waiting => format!("{id}  waiting"),
        State::Present => format!("{id}  was here"),
        State::Ready => format!("{id}  ready  {}", size(layer.total_bytes)),
        State::Pulling => {
            let (got, of) = (layer.received_bytes, layer.total_bytes.max(1));
            let filled = (u128::from(got) * BAR as u128 / u128::from(of)).min(BAR as u128) as usize;
            let bar = "=".repeat(filled) + &" ".repeat(BAR - filled);
            format!("{id}  [{bar}]  {} of {}", size(got), size(layer.total_bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, state: State, received_bytes: u64) -> Layer {
        Layer { digest: digest.into(), state: state.into(), received_bytes, total_bytes: 1000 }
    }

    fn shown(terminal: bool) -> String {
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, terminal);
        let layers = vec!["sha256:aa".into(), "sha256:bb".into()];
        progress.resolved(&Resolved { reference: "r/x:1".into(), digest: "sha256:cc".into(), layers });
        progress.layer(layer("sha256:aa", State::Pulling, 500));
        progress.layer(layer("sha256:bb", State::Present, 0));
        progress.layer(layer("sha256:aa", State::Ready, 1000));
        progress.finish();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn without_a_terminal_each_layer_is_told_once() {
        assert_eq!(shown(false), "r/x:1 is sha256:cc, 2 layers\nbb  was here\naa  ready  1kB\n");
    }

    #[test]
    fn on_a_terminal_the_picture_is_drawn_over_and_taken_away() {
        let text = shown(true);
        assert!(text.contains("aa  [============            ]  500B of 1kB\n"), "{text}");
        assert!(text.contains("1 of 2 layers, 500B received"), "{text}");
        assert!(text.ends_with("\x1b[1A\x1b[J"), "{text}");
    }
}
