use super::*;

/// A disk with so much space, and what was written to it.
#[derive(Debug, Default)]
struct Disk {
    space: usize,
    file: Vec<u8>,
    old: Vec<Vec<u8>>,
    reopens: bool,
    cuts: bool,
}

impl Sink for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(self.space);
        if length == 0 {
            return Err(io::Error::from_raw_os_error(28)); // ENOSPC
        }
        self.space -= length;
        self.file.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > 0 && !self.cuts {
            return Err(io::Error::from_raw_os_error(5)); // EIO
        }
        self.file.truncate(self.file.len() - bytes as usize);
        self.space += bytes as usize;
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        if !self.reopens {
            return Err(io::Error::from_raw_os_error(2)); // ENOENT
        }
        self.old.push(std::mem::take(&mut self.file));
        Ok(())
    }
}

fn log(space: usize) -> Log<Disk> {
    Log::new(Disk { space, reopens: true, cuts: true, ..Disk::default() })
}

const RECORD: usize = 44; // bytes of a record of `one\n` and the like

/// Everything in the file but the times.
fn content(file: &[u8]) -> String {
    let text = String::from_utf8(file.to_vec()).unwrap();
    text.lines().map(|line| format!("{}\n", line.get(31..).unwrap_or(line))).collect()
}

fn write(log: &mut Log<Disk>, stream: Stream, input: &[u8], now: Instant) -> Readiness {
    let mut used = 0;
    while used < input.len() {
        if let wait @ Readiness::NotBefore(_) = log.settle(now) {
            return wait;
        }
        used += log.take(stream, &input[used..], 0);
    }
    log.settle(now)
}

#[test]
fn both_streams_go_to_one_file_in_order() {
    let (mut log, now) = (log(1000), Instant::now());
    write(&mut log, Stream::Stdout, b"one\ntw", now);
    write(&mut log, Stream::Stderr, b"err\n", now);
    write(&mut log, Stream::Stdout, b"o\nend", now);
    log.end(Stream::Stdout, 0);
    assert_eq!(log.settle(now), Readiness::Ready);
    assert_eq!(content(&log.sink.file), "stdout F one\nstderr F err\nstdout F two\nstdout P end\n");
}

#[test]
fn a_short_full_disk_loses_nothing() {
    let (mut log, now) = (log(RECORD + 10), Instant::now());
    assert_eq!(write(&mut log, Stream::Stdout, b"one\ntwo\n", now), Readiness::NotBefore(now + PAUSE.0));
    assert_eq!(content(&log.sink.file), "stdout F one\n", "a torn record is taken back");
    log.sink.space = 1000;
    assert_eq!(log.settle(now), Readiness::NotBefore(now + PAUSE.0), "not before its time");
    assert_eq!(log.settle(now + PAUSE.0), Readiness::Ready);
    assert_eq!(content(&log.sink.file), "stdout F one\nstdout F two\n");
    assert_eq!(log.dropped(), 0);
}

#[test]
fn a_torn_record_that_cannot_be_taken_back_is_completed() {
    let (mut log, now) = (log(RECORD + 10), Instant::now());
    log.sink.cuts = false;
    write(&mut log, Stream::Stdout, b"one\ntwo\n", now);
    log.sink.space = 1000;
    log.settle(now + PAUSE.0);
    assert_eq!(content(&log.sink.file), "stdout F one\nstdout F two\n");
}

/// Lets the log try until it gives up.
fn exhaust(log: &mut Log<Disk>, mut now: Instant) -> Instant {
    while let Readiness::NotBefore(next) = log.settle(now) {
        now = next;
    }
    now
}

#[test]
fn a_long_full_disk_drops_whole_lines_and_says_how_many() {
    let (mut log, now) = (log(RECORD), Instant::now());
    write(&mut log, Stream::Stdout, b"one\ntwo\nthree\nfo", now);
    let now = exhaust(&mut log, now);
    write(&mut log, Stream::Stdout, b"ur\nfive\nsi", now);
    log.sink.space = 1000;
    let now = log.wakes_at().unwrap();
    write(&mut log, Stream::Stdout, b"x\nseven\n", now);
    assert_eq!(
        content(&log.sink.file),
        "stdout F one\nstderr F berth: dropped 5 lines: no space left on device\nstdout F seven\n"
    );
    assert_eq!(log.dropped(), 5);
    assert_eq!(log.wakes_at(), None);
}

#[test]
fn a_line_that_was_half_written_is_ended_before_the_marker() {
    let (mut log, now) = (log(frame::LINE_MAX + RECORD), Instant::now());
    let long = [vec![b'a'; frame::LINE_MAX], b"bc\nlost\n".to_vec()].concat();
    write(&mut log, Stream::Stdout, &long, now);
    let now = exhaust(&mut log, now);
    log.sink.space = 1000;
    log.settle(now + PAUSE.1);
    let content = content(&log.sink.file);
    let (first, rest) = content.split_once('\n').unwrap();
    assert!(first.starts_with("stdout P aaa"));
    assert_eq!(rest, "stdout F \nstderr F berth: dropped 2 lines: no space left on device\n");
}

#[test]
fn a_marker_that_cannot_be_written_is_repeated_with_the_new_count() {
    let (mut log, now) = (log(0), Instant::now());
    write(&mut log, Stream::Stderr, b"one\n", now);
    let now = exhaust(&mut log, now);
    log.sink.space = 20;
    let now = now + PAUSE.1;
    write(&mut log, Stream::Stderr, b"two\n", now);
    assert_eq!(content(&log.sink.file), "");
    log.sink.space = 1000;
    log.settle(now + PAUSE.1);
    assert_eq!(content(&log.sink.file), "stderr F berth: dropped 2 lines: no space left on device\n");
}

#[test]
fn giving_up_drops_at_once() {
    let (mut log, now) = (log(0), Instant::now());
    write(&mut log, Stream::Stdout, b"one\ntwo", now);
    log.give_up(now);
    assert_eq!((log.dropped(), log.settle(now)), (2, Readiness::Ready));
}

#[test]
fn reopening_loses_and_doubles_nothing() {
    let (mut log, now) = (log(RECORD + 10), Instant::now());
    write(&mut log, Stream::Stdout, b"one\ntwo\nthr", now);
    log.sink.space = 1000;
    log.reopen(now).unwrap();
    write(&mut log, Stream::Stdout, b"ee\n", now);
    assert_eq!(content(&log.sink.old[0]), "stdout F one\n");
    assert_eq!(content(&log.sink.file), "stdout F two\nstdout F three\n");
}

#[test]
fn a_failed_reopening_changes_nothing() {
    let (mut log, now) = (log(1000), Instant::now());
    log.sink.reopens = false;
    write(&mut log, Stream::Stdout, b"one\n", now);
    assert!(log.reopen(now).is_err());
    write(&mut log, Stream::Stdout, b"two\n", now);
    assert_eq!(content(&log.sink.file), "stdout F one\nstdout F two\n");
}
