//! `oom_score_adj` of processes that run: how ready the kernel is to kill each of them when memory is short.

use crate::say;

/// `None` for a process that has ended.
pub(crate) fn get(pid: i32) -> Option<i32> {
    std::fs::read_to_string(file(pid)).ok()?.trim().parse().ok()
}

/// Sets it; where the host withholds going that low it stays as low as it may. A process that has ended needs none.
pub(crate) fn set(pid: i32, asked: i32) {
    let Some(had) = get(pid) else { return };
    let write = |score: i32| std::fs::write(file(pid), score.to_string());
    match write(asked) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            // The least that is allowed cannot be read: it lies between what is asked and what there is.
            let (mut refused, mut allowed) = (asked, had);
            while allowed - refused > 1 {
                let middle = refused + (allowed - refused) / 2;
                if write(middle).is_ok() { allowed = middle } else { refused = middle }
            }
        }
        Err(error) if get(pid).is_some() => say!("set oom_score_adj of {pid}: {error}"),
        _ => {}
    }
}

fn file(pid: i32) -> String {
    format!("/proc/{pid}/oom_score_adj")
}
