//! Process 1 of a test's pid namespace: reaps what is handed to it, and ends when its standard input does, so that a
//! dead test leaves no process.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use rustix::process::{WaitOptions, wait};

fn main() {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        eprintln!("enclosure: bring lo up");
        std::process::exit(1);
    }
    println!("ready");
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(0);
    });
    loop {
        // Without children there is nothing to wait for; one may be handed to us at any time.
        if wait(WaitOptions::empty()).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
