//! Counts the responses of the gateway, and exports all figures in Prometheus' text format.

use std::{
    fmt::{self, Write as _},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use pin_project::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// Counts answers by status and by the time their head took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    by_status: [AtomicU64; 500],
    by_time: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

#[derive(Clone, Debug)]
pub(crate) struct Metered<S> {
    inner: S,
    metrics: Metrics,
}

#[pin_project]
pub(crate) struct MeteredFuture<F> {
    #[pin]
    inner: F,
    metrics: Metrics,
    start: Instant,
}

/// Writes one metric after another in the text exposition format 0.0.4.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

// === impl Metrics ===

impl Metrics {
    fn count(&self, status: u16, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let status = usize::from(status).clamp(100, 599) - 100;
        self.0.by_status[status].fetch_add(1, Relaxed);
        self.0.by_time[BOUNDS.partition_point(|&bound| bound < micros)].fetch_add(1, Relaxed);
        self.0.micros.fetch_add(micros, Relaxed);
    }

    /// Answers so far by status, without those never given.
    pub(crate) fn by_status(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let counts = self
            .0
            .by_status
            .iter()
            .enumerate()
            .map(|(index, count)| (index + 100, count.load(Relaxed)));
        counts.filter(|&(_, count)| count > 0)
    }

    /// Writes the counts.
    pub(crate) fn tell(&self, page: &mut Page) {
        page.head(
            "gateway_responses_total",
            "counter",
            "Responses by status code.",
        );
        for (status, count) in self.by_status() {
            page.line("gateway_responses_total", &[("code", &status)], count);
        }
        page.head(
            "gateway_response_seconds",
            "histogram",
            "Time from a request to the head of its response.",
        );
        let mut sum = 0;
        for (bucket, count) in self.0.by_time.iter().enumerate() {
            sum += count.load(Relaxed);
            let bound = BOUNDS
                .get(bucket)
                .map_or_else(|| "+Inf".to_owned(), |&micros| seconds(micros));
            page.line("gateway_response_seconds_bucket", &[("le", &bound)], sum);
        }
        page.line(
            "gateway_response_seconds_sum",
            &[],
            seconds(self.0.micros.load(Relaxed)),
        );
        page.line("gateway_response_seconds_count", &[], sum);
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            by_status: [const { AtomicU64::new(0) }; 500],
            by_time: [const { AtomicU64::new(0) }; BOUNDS.len() + 1],
            micros: AtomicU64::new(0),
        }
    }
}

impl<S> Layer<S> for Metrics {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered {
            inner,
            metrics: self.clone(),
        }
    }
}

/// The upper bounds of the histogram, in microseconds: 0.5 ms to 10 s.
const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

fn seconds(micros: u64) -> String {
    format!("{}", Duration::from_micros(micros).as_secs_f64())
}

// === impl Metered ===

impl<S, A, B> Service<Request<A>> for Metered<S>
where
    S: Service<Request<A>, Response = Response<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MeteredFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        MeteredFuture {
            start: Instant::now(),
            metrics: self.metrics.clone(),
            inner: self.inner.call(request),
        }
    }
}

impl<F, B, E> Future for MeteredFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Ok(response) = &result {
            this.metrics
                .count(response.status().as_u16(), this.start.elapsed());
        }
        Poll::Ready(result)
    }
}

// === impl Page ===

impl Page {
    /// Starts a metric.
    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Writes one sample.
    pub(crate) fn line(
        &mut self,
        name: &str,
        labels: &[(&str, &dyn fmt::Display)],
        value: impl fmt::Display,
    ) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value
                .to_string()
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            let _ = write!(
                self.0,
                "{}{label}=\"{value}\"",
                if index == 0 { '{' } else { ',' }
            );
        }
        let _ = writeln!(
            self.0,
            "{} {value}",
            if labels.is_empty() { "" } else { "}" }
        );
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.count(200, Duration::from_micros(500));
        metrics.count(503, Duration::from_secs(60));
        let mut page = Page::default();
        metrics.tell(&mut page);
        page.line("x", &[("name", &"a\"b\\c\nd"), ("n", &1)], 2);
        let text = page.into_text();
        for line in [
            "gateway_responses_total{code=\"200\"} 1",
            "gateway_responses_total{code=\"503\"} 1",
            "gateway_response_seconds_bucket{le=\"0.0005\"} 1",
            "gateway_response_seconds_bucket{le=\"10\"} 1",
            "gateway_response_seconds_bucket{le=\"+Inf\"} 2",
            "gateway_response_seconds_sum 60.0005",
            "gateway_response_seconds_count 2",
            "x{name=\"a\\\"b\\\\c\\nd\",n=\"1\"} 2",
        ] {
            assert!(
                text.lines().any(|told| told == line),
                "{line:?} is missing in\n{text}"
            );
        }
    }
}
