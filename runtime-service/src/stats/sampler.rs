//! Remembers processor time of whatever is measured, so that a rate can be told.
//!
//! The kernel only keeps a sum. Every running container is sampled each `PERIOD` whether or not somebody asks, so that
//! the first answer to a kubelet has a rate, over the last 10 to 20 seconds; one that began less than a sample ago has
//! none yet, which the kubelet then counts from its own two readings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cgroup::cpu_time;
use super::measure::{Stats, own_cgroup};
use super::rate::{Rate, Sample};
use crate::pods::Pods;

/// Time between two samples. Source: the kubelet asks for stats every 10 s.
const PERIOD: Duration = Duration::from_secs(10);

/// What was not measured for so long is gone.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The samples; clones share.
#[derive(Clone, Default)]
pub(crate) struct Sampler {
    rates: Arc<Mutex<HashMap<String, Rate>>>,
}

impl Stats {
    /// Keeps the samples fresh, until it is dropped.
    pub(crate) async fn keep_sampling(self, pods: Pods) {
        self.sampler.run(pods).await;
    }
}

impl Sampler {
    /// Takes a sample of `id` and tells its rate in billionths of a processor; `None` until there is one.
    pub(crate) fn rate(&self, id: &str, used_ns: u64) -> Option<u64> {
        let now = Sample { at: Instant::now(), used_ns };
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        match rates.get_mut(id) {
            Some(rate) => rate.see(now),
            None => {
                rates.insert(id.to_owned(), Rate::new(now));
                None
            }
        }
    }

    /// Samples every running container, and every pod with a cgroup of its own, until it is dropped.
    async fn run(self, pods: Pods) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (this, pods) = (self.clone(), pods.clone());
            let sampled = tokio::task::spawn_blocking(move || this.sample(&pods));
            if let Err(error) = sampled.await {
                tracing::error!(%error, "sample the containers' processor time");
            }
        }
    }

    fn sample(&self, pods: &Pods) {
        let take = |id: &str, path: &str| {
            if let Some(used) = cpu_time(&pods.shared().host.cgroups, path) {
                self.rate(id, used);
            }
        };
        for view in pods.all().iter().map(|pod| pod.view()) {
            // Its sandbox container has the pod's id, and is a part of such a cgroup.
            match (own_cgroup(view.config()), &view.sandbox_container) {
                (Some(path), _) => take(view.id.as_str(), &path),
                (None, Some(sandbox)) if sandbox.is_running() => {
                    take(view.id.as_str(), &sandbox.record.cgroup_path);
                }
                (None, _) => {}
            }
            for container in view.containers.values().filter(|c| c.is_running()) {
                take(container.record.id.as_str(), &container.record.cgroup_path);
            }
        }
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.retain(|_, rate| rate.last_seen().elapsed() < FORGOTTEN);
    }
}
