//! One request per node and batch, bounded in number, size and time. Every need gets an answer, if only a gap.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use futures::stream::{self, StreamExt};
use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::observation::series::MAX_SERIES_MS;
use netdiag_common::wire::{Ask, MAX_NEEDS, NodeReading, Report, WIRE_MAX, WIRE_MIN};
use netdiag_common::{Need, Reading, Topic};

use super::failure::Failure;
use super::instance::{self, Instances};
use super::report::RawReport;
use super::tls;
use crate::answer::status::AgentVersion;
use crate::ask::SourceError;
use crate::probe;

/// Nodes asked at the same time.
const IN_FLIGHT: usize = 64;
/// What an agent gets to read what is there and to answer; its own limit for one reading is below.
const PASSIVE: Duration = Duration::from_millis(1_500);
/// A kept connection on which nothing is acknowledged for so long is given up, and the next question opens another one
/// (tcp(7), TCP_USER_TIMEOUT): what a fault of the network left behind answers nobody any more.
const UNACKNOWLEDGED: Duration = Duration::from_secs(4);
/// Left to the agent's answer on its way, when we tell it how long we wait.
const MARGIN: Duration = Duration::from_millis(200);
/// Above the longest of a series: the last attempts' timeouts, and summing up.
const SERIES: Duration = Duration::from_secs(1);
/// Rules of 10 000 Services are about 20 MiB of JSON.
const MAX_REPORT_BYTES: usize = 64 << 20;

/// Needs of one request of a recording: everything about four pods, so that each request stays below [`PASSIVE`].
const RECORDED: usize = 24;

/// Where an agent is.
pub(crate) type Dial = Result<SocketAddr, Failure>;

/// The agents of a cluster, over connections that are kept.
pub struct Agents {
    directory: PathBuf,
    current: Mutex<(Stamp, reqwest::Client)>,
    instances: Instances,
}

/// When each file of the TLS directory was last written: another one means new certificates.
type Stamp = [Option<SystemTime>; 3];

impl Agents {
    /// Reads the certificates; sends nothing.
    pub fn new(tls_directory: &Path) -> Result<Self, SourceError> {
        let current = Mutex::new((stamp(tls_directory), client(tls_directory)?));
        Ok(Self { directory: tls_directory.to_owned(), current, instances: Instances::default() })
    }

    /// Which start of this node's agent answered last.
    pub(crate) fn instance(&self, node: &str) -> Option<String> {
        self.instances.of(node)
    }

    /// Starts of this node's agent that were met after the first one.
    pub(crate) fn restarts(&self, node: &str) -> u64 {
        self.instances.restarts(node)
    }

    /// Asks every node for its share of the needs.
    pub(crate) async fn gather(
        &self,
        needs: Vec<Need>,
        dial: impl Fn(&str) -> Dial,
        deadline: Instant,
    ) -> Vec<(Need, Reading<Observation>)> {
        let mut by_node: BTreeMap<String, Vec<Need>> = BTreeMap::new();
        for need in needs {
            by_node.entry(need.node.clone()).or_default().push(need);
        }
        let batches: Vec<(String, Dial, Vec<Need>)> = by_node
            .iter()
            .flat_map(|(node, needs)| needs.chunks(MAX_NEEDS).map(move |batch| (node, batch.to_vec())))
            .map(|(node, batch)| (node.clone(), dial(node), batch))
            .collect();
        let client = self.client();
        let answers = stream::iter(batches).map(|(node, dial, batch)| {
            let client = client.clone();
            async move {
                let asked = match dial {
                    Ok(address) => ask(&client, address, &batch, deadline).await,
                    Err(failure) => Err(failure),
                };
                match asked {
                    Ok(report) => {
                        self.instances.note(&node, &report.instance);
                        pair(batch, report)
                    }
                    Err(failure) => unavailable(batch, &failure),
                }
            }
        });
        answers.buffer_unordered(IN_FLIGHT).collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// One agent's version and its preflight.
    pub(crate) async fn status(
        &self,
        node: &str,
        dial: Dial,
        deadline: Instant,
    ) -> Result<(AgentVersion, Reading<Observation>), Failure> {
        let needs = vec![Need::host(node, Topic::Preflight)];
        let report = ask(&self.client(), dial?, &needs, deadline).await?;
        self.instances.note(node, &report.instance);
        let version = AgentVersion {
            wire: report.wire,
            agent: report.agent.clone(),
            instance: report.instance.clone(),
            restarts: self.instances.restarts(node),
        };
        let (_, reading) = pair(needs, report).pop().expect("one need has one answer");
        Ok((version, reading))
    }

    /// One agent's report about all these needs, as one bundle keeps it; in as many requests as they take.
    pub(crate) async fn report(
        &self,
        node: &str,
        dial: Dial,
        needs: Vec<Need>,
        deadline: Instant,
    ) -> Result<Report, Failure> {
        let (client, address) = (self.client(), dial?);
        let mut whole: Option<Report> = None;
        for batch in needs.chunks(RECORDED) {
            let raw = ask(&client, address, batch, deadline).await?;
            let report = whole.get_or_insert_with(|| Report {
                wire: raw.wire,
                agent: raw.agent.clone(),
                node: node.to_owned(),
                boot_id: raw.boot_id.clone(),
                instance: raw.instance.clone(),
                at: raw.at,
                boottime_ns: raw.boottime_ns,
                sequence: raw.sequence,
                readings: Vec::new(),
            });
            if report.instance != raw.instance {
                let earlier = report.readings.iter_mut().map(|reading| (&reading.need, &mut reading.reading));
                instance::withdraw(earlier, node);
                report.instance.clone_from(&raw.instance);
            }
            (report.at, report.boottime_ns, report.sequence) = (raw.at, raw.boottime_ns, raw.sequence);
            let readings = pair(batch.to_vec(), raw);
            report.readings.extend(readings.into_iter().map(|(need, reading)| NodeReading { need, reading }));
        }
        whole.ok_or_else(|| Failure::Malformed("nothing was asked".to_owned()))
    }

    /// The client, made anew when the certificates were replaced. While the new ones cannot be read, the old ones serve.
    fn client(&self) -> reqwest::Client {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = stamp(&self.directory);
        if now != current.0 {
            match client(&self.directory) {
                Ok(client) => *current = (now, client),
                Err(error) => tracing::warn!(%error, "the certificates changed and cannot be used"),
            }
        }
        current.1.clone()
    }
}

/// The same gap for every need of a node.
pub(crate) fn unavailable(needs: Vec<Need>, failure: &Failure) -> Vec<(Need, Reading<Observation>)> {
    let gap = |need: &Need| Reading::Unavailable { gap: failure.gap(need) };
    needs.into_iter().map(|need| (need.clone(), gap(&need))).collect()
}

fn client(directory: &Path) -> Result<reqwest::Client, SourceError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(directory)?)
        .https_only(true)
        .no_proxy()
        .connect_timeout(PASSIVE)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| SourceError { message: format!("cannot make a client for the agents: {error}") })
}

fn stamp(directory: &Path) -> Stamp {
    [tls::CA_FILE, tls::CERTIFICATE_FILE, tls::KEY_FILE]
        .map(|file| std::fs::metadata(directory.join(file)).and_then(|metadata| metadata.modified()).ok())
}

async fn ask(
    client: &reqwest::Client,
    address: SocketAddr,
    needs: &[Need],
    deadline: Instant,
) -> Result<RawReport, Failure> {
    let limit = patience(needs).min(deadline.saturating_duration_since(Instant::now()));
    let budget = limit.saturating_sub(MARGIN).as_millis();
    let ask = Ask { wire: WIRE_MAX, needs: needs.to_vec(), budget_ms: u64::try_from(budget).unwrap_or(u64::MAX) };
    let failed = |error: reqwest::Error| Failure::of_request(&error, address, limit);
    let exchange = async {
        let send = || client.post(format!("https://{address}/v1/readings")).json(&ask).send();
        let mut response = match send().await {
            Err(error) if is_left_behind(&error) => send().await,
            sent => sent,
        }
        .map_err(failed)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_REPORT_BYTES {
                return Err(Failure::Malformed(format!("its report exceeds {MAX_REPORT_BYTES} bytes")));
            }
        }
        if !status.is_success() {
            return Err(Failure::of_refusal(status.as_u16(), &body));
        }
        let report: RawReport = serde_json::from_slice(&body)
            .map_err(|error| Failure::Malformed(format!("its report does not decode: {error}")))?;
        if (WIRE_MIN..=WIRE_MAX).contains(&report.wire) {
            Ok(report)
        } else {
            Err(Failure::Wire(report.wire, report.wire))
        }
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(Failure::TimedOut(address, limit)))
}

/// A kept connection that has ended is found out by the first request on it. Whatever is asked may be asked twice.
fn is_left_behind(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

/// What an agent may take to load its programs for a tag: a second, and more on a busy node.
const LOADING: Duration = Duration::from_secs(5);

/// How long a batch may take: probes and traces run side by side, so the longest one decides.
fn patience(needs: &[Need]) -> Duration {
    let probes = needs.iter().filter_map(|need| match &need.topic {
        Topic::Probe(ProbeRequest::TcpConnect { timeout_ms, attempts, .. }) => {
            Some(Duration::from_millis(u64::from(*timeout_ms) * u64::from(*attempts)))
        }
        Topic::Probe(ProbeRequest::Dns { timeout_ms, .. }) => Some(Duration::from_millis(u64::from(*timeout_ms))),
        Topic::Series(request) => {
            let longest = probe::plan::longest_of_ms(request).min(MAX_SERIES_MS);
            Some(Duration::from_millis(longest) + SERIES)
        }
        Topic::Trace(request) => Some(Duration::from_secs(u64::from(request.seconds))),
        // The first one waits until the programs are loaded.
        Topic::Tagged(request) => Some(Duration::from_secs(u64::from(request.seconds)) + LOADING),
        _ => None,
    });
    PASSIVE + probes.max().unwrap_or_default()
}

/// Ties answers to needs. What the report leaves out, or what does not decode, is a gap of that need alone.
fn pair(needs: Vec<Need>, report: RawReport) -> Vec<(Need, Reading<Observation>)> {
    let mut answers: BTreeMap<Need, Reading<Observation>> = BTreeMap::new();
    let mut reasons: BTreeMap<Need, String> = BTreeMap::new();
    let mut nameless = Vec::new();
    for reading in report.readings {
        match reading.decode() {
            Ok(reading) => {
                answers.insert(reading.need, reading.reading);
            }
            Err(undecoded) => match undecoded.need {
                Some(need) => {
                    reasons.insert(*need, undecoded.why);
                }
                None => nameless.push(undecoded.why),
            },
        }
    }
    let missing = || match nameless.first() {
        Some(why) => why.clone(),
        None => "its report leaves this need out".to_owned(),
    };
    let answer = |need: Need| {
        let reading = answers.remove(&need).unwrap_or_else(|| {
            let why = reasons.remove(&need).unwrap_or_else(missing);
            Reading::Unavailable { gap: Failure::Malformed(why).gap(&need) }
        });
        (need, reading)
    };
    needs.into_iter().map(answer).collect()
}
