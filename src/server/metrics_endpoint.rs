//! The `/metrics` endpoint for Prometheus, which serves all metrics on a separate port.
//!
//! It is plain HTTP without authentication because no metric names a tenant, an owner or a key.

use std::{convert::Infallible, fmt, fs, io, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, VARY},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::JoinSet, time};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    admission::{Admitted, Closed},
    listener::Listener,
};
use crate::{
    domain::clock::Timestamp,
    metrics::{Collect, Encoded, Encoder, Format},
};

/// Timeout for a client to send a request, also the next one on the same connection.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum duration of a connection, also of one that does not read its response.
const CONNECTION_MAX: Duration = Duration::from_mins(5);

/// Serves the metrics of the process and of these parts on the current runtime, until the handle is
/// dropped.
pub(super) fn start(
    port: Listener,
    started: Timestamp,
    parts: impl IntoIterator<Item = Arc<dyn Collect>>,
) -> AbortOnDropHandle<()> {
    let process = Arc::new(Process { started }) as Arc<dyn Collect>;
    let parts: Vec<_> = [process].into_iter().chain(parts).collect();
    let told = Encoded::new(&parts);
    AbortOnDropHandle::new(tokio::spawn(serve(port, Arc::new(told))))
}

async fn serve(port: Listener, told: Arc<Encoded>) {
    let mut open = JoinSet::new();
    let serve = |stream, _, mut admitted: Admitted| {
        while open.try_join_next().is_some() {}
        let told = Arc::clone(&told);
        open.spawn(async move {
            let why = tokio::select! {
                why = answer(stream, &told, &admitted) => why,
                () = time::sleep(CONNECTION_MAX) => Closed::Age,
                () = admitted.evicted() => Closed::Evicted,
            };
            admitted.closed(why);
        });
    };
    port.accept(&CancellationToken::new(), serve).await;
}

async fn answer(stream: TcpStream, told: &Encoded, admitted: &Admitted) -> Closed {
    let service = service_fn(|request| {
        let mut stream = admitted.counter().open();
        let response = respond(&request, told);
        stream.handled();
        admitted.greeted();
        async move { Ok::<_, Infallible>(response) }
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    match ended {
        Err(error) if error.is_timeout() => Closed::Idle,
        Err(error) if error.is_parse() => Closed::Protocol,
        Ok(()) | Err(_) => Closed::Client,
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn respond(request: &Request<Incoming>, told: &Encoded) -> Response<String> {
    let with = |status, name, value: &'static str, body| {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let value = hyper::header::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
        response
    };
    if request.uri().path() != "/metrics" {
        let body = "the metrics are at /metrics\n".to_owned();
        return with(StatusCode::NOT_FOUND, CONTENT_TYPE, TEXT, body);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return with(
            StatusCode::METHOD_NOT_ALLOWED,
            ALLOW,
            "GET, HEAD",
            String::new(),
        );
    }
    let format = format(request.headers());
    let Ok(page) = told.page(format) else {
        let body = "the page could not be written\n".to_owned();
        return with(StatusCode::INTERNAL_SERVER_ERROR, CONTENT_TYPE, TEXT, body);
    };
    let mut response = with(StatusCode::OK, CONTENT_TYPE, format.content_type(), page);
    let vary = hyper::header::HeaderValue::from_static("accept");
    response.headers_mut().insert(VARY, vary);
    response
}

/// Returns the format that `Accept` prefers, or the classic one if it has no preference.
fn format(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(ACCEPT).iter();
    let accepted = accepted.filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = accepted
        .flat_map(|value| value.split(','))
        .map(Range::parse)
        .collect();
    let weight = |kind: &str, version: &str| {
        let (group, _) = kind.split_once('/').unwrap_or((kind, ""));
        let of = |wanted: &str| {
            let wanted = ranges
                .iter()
                .filter(|range| range.kind.eq_ignore_ascii_case(wanted));
            let versions = wanted.filter(|range| range.version.is_none_or(|it| it == version));
            versions.map(|range| range.weight).reduce(f32::max)
        };
        // A more specific media range takes precedence (RFC 9110, 12.5.1).
        of(kind).or_else(|| of(&format!("{group}/*")))
    };
    let any = ranges.iter().filter(|range| range.kind == "*/*");
    let any = any
        .map(|range| range.weight)
        .reduce(f32::max)
        .unwrap_or(0.0);
    let classic = weight("text/plain", "0.0.4").unwrap_or(any);
    match weight("application/openmetrics-text", "1.0.0") {
        Some(openmetrics) if openmetrics > classic => Format::OpenMetrics,
        _ => Format::Classic,
    }
}

/// A media range in `Accept`.
struct Range<'a> {
    kind: &'a str,
    version: Option<&'a str>,
    weight: f32,
}

impl<'a> Range<'a> {
    fn parse(range: &'a str) -> Self {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |name: &str| {
            let mut found = parameters
                .iter()
                .filter(|(it, _)| it.trim().eq_ignore_ascii_case(name));
            found
                .next()
                .map(|(_, value)| value.trim().trim_matches('"'))
        };
        let weight = parameter("q").map_or(Some(1.0), |q| q.parse().ok());
        Self {
            kind,
            version: parameter("version"),
            // An invalid weight counts as 0.
            weight: weight.filter(|it| (0.0..=1.0).contains(it)).unwrap_or(0.0),
        }
    }
}

/// The metrics of the process, with the names that the Prometheus client libraries use.
struct Process {
    started: Timestamp,
}

impl Collect for Process {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        page.gauges(
            "gatekey_build_info",
            "Which gatekey this is",
            [([("version", env!("CARGO_PKG_VERSION"))], 1_u64)],
        )?;
        page.gauge(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            Duration::from_micros(self.started.as_micros().unsigned_abs()).as_secs_f64(),
        )?;
        // Values that the kernel does not provide are omitted.
        if let Ok(used) = Used::read() {
            page.counter(
                "process_cpu_seconds_total",
                "Processor time that was used, in seconds",
                used.cpu.as_secs_f64(),
            )?;
            page.gauge(
                "process_resident_memory_bytes",
                "Memory that is in use, in bytes",
                used.resident,
            )?;
            page.gauge(
                "process_virtual_memory_bytes",
                "Memory that is mapped, in bytes",
                used.mapped,
            )?;
            page.gauge("process_threads", "Threads that run", used.threads)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            page.gauge(
                "process_open_fds",
                "File descriptors that are open",
                // One descriptor belongs to the directory that is being read.
                open.count().saturating_sub(1),
            )?;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current.map_or(Ok(()), |max| {
            page.gauge(
                "process_max_fds",
                "How many file descriptors may be open",
                max,
            )
        })
    }
}

/// The resource usage of a process, from `/proc/self/stat` (proc(5)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Used {
    cpu: Duration,
    threads: u64,
    mapped: u64,
    resident: u64,
}

impl Used {
    fn read() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
        Self::parse(&stat).ok_or_else(unreadable)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The program's name is in parentheses and may contain any character.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        // The first field here is the third field of the file.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = field(14)? + field(15)?;
        let nanos = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        Some(Self {
            cpu: Duration::from_nanos(ticks.checked_mul(nanos)?),
            threads: field(20)?,
            mapped: field(23)?,
            resident: field(24)?.checked_mul(rustix::param::page_size() as u64)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_accepted_most() {
        use Format::{Classic, OpenMetrics};
        const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0;q=0.8,\
             application/openmetrics-text;version=0.0.1;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accepted, chosen) in [
            (&[][..], Classic),
            (&["*/*"], Classic),
            (&[PROMETHEUS_2], OpenMetrics),
            (&[PROMETHEUS_3], OpenMetrics),
            (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], Classic),
            (&["application/openmetrics-text"], OpenMetrics),
            (
                &["Application/OpenMetrics-Text; Version=\"1.0.0\""],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;version=0.0.1"], Classic),
            (&["application/openmetrics-text;q=0"], Classic),
            (&["application/openmetrics-text;q=loud"], Classic),
            (&["application/openmetrics-text, text/plain"], Classic),
            (&["application/openmetrics-text;q=0.5, */*;q=0.9"], Classic),
            (
                &["application/openmetrics-text;q=0.9", "text/plain;q=0.5"],
                OpenMetrics,
            ),
            (&["text/*;q=0.3, application/*;q=0.4"], OpenMetrics),
            (&["application/json"], Classic),
            (&["", ";;,=,q=1"], Classic),
        ] {
            let mut headers = HeaderMap::new();
            for value in accepted {
                headers.append(ACCEPT, value.parse().unwrap());
            }
            assert_eq!(format(&headers), chosen, "{accepted:?}");
        }
    }

    #[test]
    fn what_a_process_uses_is_read_whatever_it_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 9 0 0 0 150 50 0 0 20 0 12 0 99 4096000 10 18446744073709551615 1";
        let used = Used {
            cpu: Duration::from_nanos(
                200 * (1_000_000_000 / rustix::param::clock_ticks_per_second()),
            ),
            threads: 12,
            mapped: 4_096_000,
            resident: 10 * rustix::param::page_size() as u64,
        };
        assert_eq!(Used::parse(stat), Some(used));
        assert_eq!(Used::parse("7 (a) S 1"), None);
        assert!(Used::read().unwrap().resident > 0);
    }
}
