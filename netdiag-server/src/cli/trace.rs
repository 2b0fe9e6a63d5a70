//! `netdiag trace`: the way of one packet and of its answer, predicted, and proven by the kernels' own trace.

use netdiag_common::Tier;
use netdiag_common::forwarding::{RuleKey, RuleKeyError, Without};
use netdiag_common::observation::fate::MAX_WITHOUT;
use serde::{Deserialize, Serialize};

use super::output::{self, Progress, ShortFormat};
use super::request::{self, TransportProtocol};
use super::source::{self, SourceArgs};
use super::{EXIT_CAUSE, EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure};
use crate::answer::trace::{self, TraceAnswer};
use crate::ask::{AnySource, Source};
use crate::question::{Origin, ParseError, Purpose, Question};

/// Who arms a trace from this process, in the agents' logs.
const HERE: &str = "the command line";

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
    /// Predict as if this rule were not there, such as 'inet filter forward 7' (family, table, chain, handle); may be given up to 16
    /// times; nothing is sent or changed
    #[arg(long, value_name = "RULE", conflicts_with_all = ["armed", "counters"])]
    without: Vec<String>,
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
    /// Rules as answers name them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
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
        if !self.without.is_empty() && (self.armed || self.counters) {
            let why = "--without predicts what is not so, and sends nothing: ask without --armed and --counters";
            return Err(Failure(why.to_owned()));
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

    pub fn without(&self) -> Result<Without, Failure> {
        if self.without.len() > MAX_WITHOUT {
            let count = self.without.len();
            return Err(Failure(format!("{count} rules are to be left out; {MAX_WITHOUT} are the most that can be")));
        }
        let rules = self.without.iter().map(|name| name.parse::<RuleKey>());
        rules.collect::<Result<Without, _>>().map_err(|error: RuleKeyError| Failure(error.to_string()))
    }
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let request = TraceRequest {
        from: args.from,
        to: args.to,
        protocol: args.protocol,
        armed: args.armed,
        counters: args.counters,
        without: args.without,
        timeout_ms: args.timeout,
    };
    let (question, without) = (request.question()?, request.without()?);
    let answer = {
        let _progress = Progress::start("following the packet");
        let here = async |source: AnySource| trace_with(&source, &question, without.clone(), Some(HERE)).await;
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
pub(super) async fn trace_with<S: Source>(
    source: &S,
    question: &Question,
    without: Without,
    asked_by: Option<&str>,
) -> Result<TraceAnswer, Failure> {
    let followed = crate::trace::trace(source, question, without, asked_by).await?;
    Ok(trace::build(&followed, source.now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: serde_json::Value) -> TraceRequest {
        let mut request = serde_json::json!({"from": "node/n1", "to": "service/shop/web:80"});
        let fields = request.as_object_mut().expect("an object");
        fields.extend(json.as_object().expect("an object").clone());
        serde_json::from_value(request).expect("a request")
    }

    fn refused<T>(asked: Result<T, Failure>) -> String {
        match asked {
            Err(Failure(why)) => why,
            Ok(_) => panic!("it was not refused"),
        }
    }

    #[test]
    fn rules_are_left_out_once_each() {
        let names = ["inet site fw 2", "inet site fw rule 2", "legacy iptables filter FORWARD rule 3"];
        let request = request(serde_json::json!({"without": names}));
        let Ok(question) = request.question() else { panic!("it was refused") };
        assert_eq!(question.tier, Tier::Passive);
        let Ok(without) = request.without() else { panic!("it was refused") };
        let shown: Vec<String> = without.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["inet site fw rule 2", "legacy iptables filter FORWARD rule 3"]);
    }

    #[test]
    fn what_is_not_so_is_neither_armed_nor_counted() {
        for proof in ["armed", "counters"] {
            let why = refused(request(serde_json::json!({"without": ["inet t c 1"], proof: true})).question());
            assert!(why.contains("sends nothing") && why.contains(&format!("--{proof}")), "{why}");
        }
    }

    #[test]
    fn a_rule_that_is_not_understood_is_told_the_form() {
        let why = refused(request(serde_json::json!({"without": ["inet t c 1", "fw 2"]})).without());
        assert!(why.contains("\"fw 2\" names no rule") && why.contains("FAMILY TABLE CHAIN HANDLE"), "{why}");
        let many: Vec<String> = (1..=17).map(|handle| format!("inet t c {handle}")).collect();
        assert!(refused(request(serde_json::json!({"without": many})).without()).contains("17 rules"));
        assert!(request(serde_json::json!({"without": many[..16]})).without().is_ok());
    }
}
