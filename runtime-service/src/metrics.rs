//! What the daemon counts, and where Prometheus reads it. Ids are never labels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use serde::Deserialize;

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `ADDRESS:PORT`; empty: nowhere.
    pub listen: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9498".into() }
    }
}

/// The daemon's metrics; clones share.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    errors: IntCounterVec,
    stages: HistogramVec,
    cni_failures: IntCounterVec,
    shims_died: IntCounter,
    pods: IntGauge,
    records_unreadable: IntGauge,
}

/// From 0.5 ms, where a good call lies, to 30 s, where a plugin is killed; in seconds.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

impl Metrics {
    /// Fresh metrics in a registry of their own.
    ///
    /// # Errors
    /// A name is registered twice, which a test would see.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, labels: &[&str]| -> Result<HistogramVec, prometheus::Error> {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let requests = histogram("berth_rpc_duration_seconds", "Time from request to answer.", &["method"])?;
        let errors = counter("berth_rpc_errors_total", "Answers that were errors.", &["method", "code"])?;
        let stages = histogram("berth_pod_start_stage_seconds", "Time in one stage of a pod's start.", &["stage"])?;
        let cni_failures = counter("berth_cni_failures_total", "Plugin calls that failed.", &["verb"])?;
        let shims_died = IntCounter::new("berth_shims_died_total", "Shims that were gone before their container.")?;
        let pods = IntGauge::new("berth_pods", "Pods known, ready or not.")?;
        let records_unreadable =
            IntGauge::new("berth_records_unreadable", "Records found at start that could not be read and were kept.")?;
        registry.register(Box::new(shims_died.clone()))?;
        registry.register(Box::new(pods.clone()))?;
        registry.register(Box::new(records_unreadable.clone()))?;
        Ok(Self { registry, requests, errors, stages, cni_failures, shims_died, pods, records_unreadable })
    }

    /// One answered call.
    pub fn rpc(&self, method: &str, took: Duration, error: Option<tonic::Code>) {
        self.requests.with_label_values(&[method]).observe(took.as_secs_f64());
        if let Some(code) = error {
            self.errors.with_label_values(&[method, &format!("{code:?}")]).inc();
        }
    }

    /// One finished stage of a pod's or container's start.
    pub fn stage(&self, stage: &str, took: Duration) {
        self.stages.with_label_values(&[stage]).observe(took.as_secs_f64());
    }

    /// A plugin call that failed.
    pub fn cni_failed(&self, verb: &str) {
        self.cni_failures.with_label_values(&[verb]).inc();
    }

    /// A shim that died before its container.
    pub fn shim_died(&self) {
        self.shims_died.inc();
    }

    /// How many pods are known.
    pub fn pods(&self, count: usize) {
        self.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many records could not be read at start.
    pub fn unreadable(&self, count: usize) {
        self.records_unreadable.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }

    /// Serves `/metrics` and `/healthz` on `listener` until the daemon ends.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(self, listener: tokio::net::TcpListener) -> std::io::Result<()> {
        let metrics = Arc::new(self);
        let text = get(move || {
            let metrics = metrics.clone();
            async move { metrics.text().map_err(|e| (axum::http::StatusCode::INTERNAL_SERVER_ERROR, e.to_string())) }
        });
        // The socket is bound only when recovery is over, so whoever is answered here is answered by a ready daemon.
        let app = Router::new().route("/metrics", text).route("/healthz", get(|| async { "ok\n" }));
        axum::serve(listener, app).await
    }
}

impl Config {
    /// The address to bind, or `None` when metrics are off.
    ///
    /// # Errors
    /// The setting is not `ADDRESS:PORT`.
    pub fn address(&self) -> Result<Option<SocketAddr>, std::net::AddrParseError> {
        match self.listen.as_str() {
            "" => Ok(None),
            listen => listen.parse().map(Some),
        }
    }
}
