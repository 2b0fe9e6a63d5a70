//! `netdiag trace`: the way of one packet and of its answer, predicted, and proven by the kernels' own trace.

use netdiag_common::Tier;
use serde::{Deserialize, Serialize};

use super::output::{self, Progress, ShortFormat};
use super::request::{self, TransportProtocol};
use super::source::{self, SourceArgs};
use super::{EXIT_CAUSE, EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure};
use crate::answer::trace::{self, TraceAnswer};
use crate::ask::{AnySource, Source};
use crate::question::{Origin, ParseError, Purpose, Question};

/// Shows what every node on the way will do with a packet and its answer, rule by rule
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// pod/NAMESPACE/NAME or node/NAME
    #[arg(long, value_name = "SOURCE")]
    from: String,
    /// service/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT, node/NAME:PORT or ip/ADDRESS:PORT
    #[arg(long, value_name = "TARGET")]
    to: String,
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: TransportProtocol,
    /// Let the kernels trace one connection attempt, and compare; agents must allow it (`--allow-trace`)
    #[arg(long)]
    armed: bool,
    /// Attempt a dozen connections, and show what the rules on the way counted meanwhile; changes nothing
    #[arg(long, conflicts_with = "armed")]
    counters: bool,
    /// Time until the prediction must be there: 500ms, 20s, 2m
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = request::parse_timeout)]
    timeout: u64,
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
    #[command(flatten)]
    source: SourceArgs,
}

/// `POST /v1/trace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceRequest {
    pub from: String,
    pub to: String,
    #[serde(default)]
    pub protocol: TransportProtocol,
    #[serde(default)]
    pub armed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counters: bool,
    #[serde(default = "request::default_timeout_ms")]
    pub timeout_ms: u64,
}

impl TraceRequest {
    pub fn question(&self) -> Result<Question, Failure> {
        if self.armed && self.protocol != TransportProtocol::Tcp {
            return Err(Failure("only TCP can be sent and traced so far; ask without --armed".to_owned()));
        }
        if self.counters && self.protocol != TransportProtocol::Tcp {
            return Err(Failure("only TCP can be sent and counted so far; ask without --counters".to_owned()));
        }
        let understood = |error: ParseError| Failure(error.to_string());
        Ok(Question {
            from: self.from.parse::<Origin>().map_err(understood)?,
            to: self.to.parse().map_err(understood)?,
            protocol: self.protocol.into(),
            purpose: Purpose::Diagnose,
            tier: match (self.armed, self.counters) {
                (true, true) => return Err(Failure("--armed and --counters are two proofs; ask for one".to_owned())),
                (true, false) => Tier::Trace,
                (false, true) => Tier::Probe,
                (false, false) => Tier::Passive,
            },
            budget: request::budget(self.timeout_ms),
        })
    }
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let request = TraceRequest {
        from: args.from,
        to: args.to,
        protocol: args.protocol,
        armed: args.armed,
        counters: args.counters,
        timeout_ms: args.timeout,
    };
    let question = request.question()?;
    let answer = {
        let _progress = Progress::start("following the packet");
        let here = async |source: AnySource| trace_with(&source, &question).await;
        source::answer(&args.source, ("/v1/trace", &request), args.timeout, here).await?
    };
    match args.output {
        ShortFormat::Text => output::print(&answer.text(output::paint()))?,
        ShortFormat::Json => output::print(&output::json(&answer)?)?,
    }
    Ok(match () {
        () if answer.is_healthy() => EXIT_HEALTHY,
        () if answer.is_stopped() => EXIT_CAUSE,
        () => EXIT_UNEXPLAINED,
    })
}

/// For the command line and the server alike.
pub(super) async fn trace_with<S: Source>(source: &S, question: &Question) -> Result<TraceAnswer, Failure> {
    let followed = crate::trace::trace(source, question).await?;
    Ok(trace::build(&followed, source.now()))
}
