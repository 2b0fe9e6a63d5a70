//! What every kind of probe takes on the command line, and how its words are read.

use netdiag_common::observation::series::dns::DnsType;
use serde::de::DeserializeOwned;

use super::super::output::ShortFormat;
use super::super::request;
use super::super::source::SourceArgs;
use crate::probe::{Family, Kind, Options, ProbeRequest};

/// What was asked for, and how it is to be answered.
pub(super) struct Asked {
    pub request: ProbeRequest,
    pub output: ShortFormat,
    pub source: SourceArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// pod/NAMESPACE/NAME or node/NAME
    #[arg(long, value_name = "SOURCE")]
    from: String,
    /// pod/NAMESPACE/NAME:PORT, service/NAMESPACE/NAME:PORT, node/NAME:PORT, NAME:PORT, ADDRESS:PORT or a URL
    #[arg(long, value_name = "TARGET")]
    to: String,
    /// Attempts to each address
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u32>,
    /// From one attempt's start to the next one's: 500us, 10ms, 1s
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    interval: Option<u64>,
    /// Of each attempt: 500ms, 5s
    #[arg(long, value_name = "TIME", value_parser = request::parse_timeout)]
    timeout: Option<u64>,
    /// Attempts on their way at one time; with --interval, as many as keep it
    #[arg(long, value_name = "NUMBER")]
    parallel: Option<u16>,
    /// Only the target's addresses of this family
    #[arg(long, value_enum, default_value = "any")]
    family: Family,
    /// Owner of the sockets, as rules of meshes see it
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Mark of the packets (SO_MARK)
    #[arg(long, value_name = "MARK")]
    mark: Option<u32>,
    /// Let the nodes' kernels follow each attempt, one after the other, until one fails: where it was dropped, and by what
    #[arg(long)]
    follow: bool,
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
    #[command(flatten)]
    source: SourceArgs,
}

impl Common {
    pub fn asked(self, kind: Kind, options: Options) -> Asked {
        let mut request = ProbeRequest::new(kind, &self.from, &self.to);
        request.family = self.family;
        request.count = self.count;
        request.interval_us = self.interval.unwrap_or(0);
        // A timeout beyond all limits is refused with them.
        request.timeout_ms = self.timeout.map(|timeout| u32::try_from(timeout).unwrap_or(u32::MAX));
        (request.options, request.follow) = (options, self.follow);
        request.parallel = self.parallel.unwrap_or_else(|| request.usual_parallel());
        (request.uid, request.mark) = (self.uid, self.mark);
        Asked { request, output: self.output, source: self.source }
    }
}

/// A word of the wire, as JSON spells it.
pub(super) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| {
        let said = error.to_string();
        // `unknown variant `x`, expected one of …`
        said.split_once(", ").map_or(said.clone(), |(_, expected)| expected.to_owned())
    })
}

pub(super) fn record(text: &str) -> Result<DnsType, String> {
    word(&text.to_ascii_uppercase())
}

/// `500us`, else as timeouts are; microseconds.
fn parse_interval(text: &str) -> Result<u64, String> {
    if let Some(number) = text.strip_suffix("us") {
        return number.parse().map_err(|_| "use a time such as 500us, 10ms or 1s".to_owned());
    }
    request::parse_timeout(text).map(|milliseconds| milliseconds.saturating_mul(1_000))
}
