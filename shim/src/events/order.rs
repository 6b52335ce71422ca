//! In which order the events of one process are told: its start before its end, its end before its deletion. No process
//! waits for another's, and none for its events: who tells waits, in a task of its own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Processes of which something is still to be told, by their exec ids; the init's is empty, as Task has it.
#[derive(Debug, Default)]
pub(super) struct Order {
    processes: Mutex<HashMap<String, Process>>,
}

#[derive(Debug, Default)]
struct Process {
    /// How many starts of it are under way: more than one when it is asked for twice.
    starts: watch::Sender<usize>,
    end: Option<JoinHandle<()>>,
}

/// A start that is under way.
#[derive(Debug)]
pub(crate) struct Starting(watch::Sender<usize>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.send_modify(|starts| *starts -= 1);
    }
}

impl Order {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See `Events::starting`.
    pub(super) fn starting(&self, exec_id: &str) -> Starting {
        let starts = self.lock().entry(exec_id.to_owned()).or_default().starts.clone();
        starts.send_modify(|starts| *starts += 1);
        Starting(starts)
    }

    /// See `Events::at_the_end`.
    pub(super) fn at_the_end<T: Send + 'static>(
        &self,
        exec_id: &str,
        end: impl Future<Output = T> + Send + 'static,
        tell: impl FnOnce(T) + Send + 'static,
    ) {
        let mut processes = self.lock();
        let process = processes.entry(exec_id.to_owned()).or_default();
        let mut starts = process.starts.subscribe();
        process.end = Some(tokio::spawn(async move {
            let end = end.await;
            // Fails when no start can come any more, which is as good.
            let _ = starts.wait_for(|starts| *starts == 0).await;
            tell(end);
        }));
    }

    /// See `Events::settled`.
    pub(super) async fn settled(&self, exec_id: &str) {
        let settling: Vec<Process> = match exec_id {
            "" => std::mem::take(&mut *self.lock()).into_values().collect(),
            exec_id => self.lock().remove(exec_id).into_iter().collect(),
        };
        for process in settling {
            let _ = process.starts.subscribe().wait_for(|starts| *starts == 0).await;
            if let Some(end) = process.end {
                let _ = end.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    type Told = Arc<Mutex<Vec<&'static str>>>;

    fn note(told: &Told, what: &'static str) -> impl FnOnce(()) + Send + use<> {
        let told = told.clone();
        move |()| told.lock().expect("unpoisoned").push(what)
    }

    /// Lets every task run that can.
    async fn turns() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_end_is_told_after_the_start_and_before_the_deletion() {
        let (order, told) = (Order::default(), Told::default());
        order.at_the_end("", async {}, note(&told, "end"));
        let (first, second) = (order.starting(""), order.starting(""));
        // The one that is refused.
        drop(second);
        turns().await;
        assert!(told.lock().expect("unpoisoned").is_empty());
        note(&told, "start")(());
        drop(first);
        order.settled("").await;
        assert_eq!(*told.lock().expect("unpoisoned"), ["start", "end"]);
    }

    #[tokio::test]
    async fn no_process_waits_for_anothers_start() {
        let (order, told) = (Order::default(), Told::default());
        let hangs = order.starting("hangs");
        drop(order.starting("quick"));
        let (ends, end) = oneshot::channel();
        order.at_the_end("quick", async { end.await.unwrap_or(()) }, note(&told, "quick"));
        ends.send(()).expect("somebody waits");
        order.settled("quick").await;
        assert_eq!(*told.lock().expect("unpoisoned"), ["quick"]);
        drop(hangs);
    }

    #[tokio::test]
    async fn with_the_init_all_are_settled() {
        let (order, told) = (Order::default(), Told::default());
        for (exec_id, what) in [("", "init"), ("a", "a"), ("b", "b")] {
            order.at_the_end(exec_id, async {}, note(&told, what));
        }
        order.settled("").await;
        assert_eq!(told.lock().expect("unpoisoned").len(), 3);
        assert!(order.lock().is_empty());
        order.settled("a").await;
    }
}
