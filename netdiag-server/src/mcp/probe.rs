//! Tool `probe`: packets as a pod would send them, and exactly what came of them.

use std::sync::Arc;

use netdiag_common::observation::series::MAX_SERIES_PARALLEL;
use rmcp::model::{JsonObject, Tool};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{FULL_BYTES, Reply, SUMMARY_BYTES, input, sending};
use super::{Caller, CallerRights, State};
use crate::answer::probe::{self as answer, ProbeAnswer};
use crate::answer::schema;
use crate::ask::Source;
use crate::probe::{self, Family, Kind, Options, ProbeRequest, Sender};

pub const NAME: &str = "probe";

/// Attempts of one call: enough for each of a few endpoints, short enough for clients that wait.
const MAX_COUNT: u32 = 200;
/// So long that resolvers' own timeouts are seen (20 s), and below the patience of clients.
const MAX_TIMEOUT_MS: u32 = 25_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    kind: Kind,
    from: String,
    to: String,
    #[serde(default)]
    family: Family,
    #[serde(default)]
    count: u32,
    #[serde(default)]
    interval_us: u64,
    #[serde(default)]
    timeout_ms: u32,
    #[serde(default)]
    parallel: u16,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    mark: Option<u32>,
    #[serde(default)]
    path: String,
    #[serde(default)]
    https: bool,
    #[serde(default)]
    server_name: String,
    #[serde(default)]
    server: String,
    #[serde(default)]
    source_port: u16,
    #[serde(default)]
    options: Options,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    detail: String,
}

pub fn tool() -> Tool {
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let taken = Kind::ALL.iter().filter(|kind| !kind.options().is_empty());
    let options: Vec<String> = taken.map(|kind| format!("{kind}: {}", kind.options().join(", "))).collect();
    let options = format!("The other words of a kind, as in POST /v1/probe. {}", options.join("; "));
    let input = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["kind", "from", "to"],
        "properties": {
            "kind": {"type": "string", "enum": kinds, "description": "ladder: from the endpoint's own listener outwards until a rung fails, from the pod, a twin and the node. matrix: every kind of neighbour at once. Else one protocol"},
            "from": {"type": "string", "description": "Who sends: pod/NAMESPACE/NAME (in the pod's own network namespace) or node/NAME"},
            "to": {"type": "string", "description": "service/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT, node/NAME:PORT, NAME:PORT, ADDRESS:PORT or a URL. For dns: the name to look up"},
            "family": {"type": "string", "enum": ["any", "ipv4", "ipv6"], "default": "any", "description": "Only addresses of this family"},
            "count": {"type": "integer", "minimum": 0, "maximum": MAX_COUNT, "default": 0, "description": "Attempts to each address; 0 for what is usual. With several endpoints ask for 8 or more of each"},
            "interval_us": {"type": "integer", "minimum": 0, "default": 0, "description": "From one attempt's start to the next one's, microseconds; 0: as soon as there is a place. Count times interval is at most 120 s"},
            "timeout_ms": {"type": "integer", "minimum": 0, "maximum": MAX_TIMEOUT_MS, "default": 0, "description": "Of each attempt; 0 for what is usual"},
            "parallel": {"type": "integer", "minimum": 0, "maximum": MAX_SERIES_PARALLEL, "default": 0, "description": "Attempts on their way at one time; 0 for 1, or with interval_us as many as keep it"},
            "uid": {"type": "integer", "minimum": 0, "maximum": u32::MAX, "description": "Owner of the sockets, as rules of meshes see it; needs the capability SETUID at the agent"},
            "mark": {"type": "integer", "minimum": 0, "maximum": u32::MAX, "description": "Mark of the packets (SO_MARK)"},
            "path": {"type": "string", "default": "", "description": "http: the path, where `to` is no URL. dns over HTTPS: the path of the queries"},
            "https": {"type": "boolean", "default": false, "description": "http: TLS, where `to` is no URL"},
            "server_name": {"type": "string", "default": "", "description": "http and tls: SNI, and the name that the certificate must have"},
            "server": {"type": "string", "default": "", "description": "dns: ADDRESS[:PORT], service/NAMESPACE/NAME, or each: those of the pod's resolv.conf, the cluster's DNS and its replicas, the node's cache and CoreDNS's upstreams apart; without it, as a program of the pod asks"},
            "source_port": {"type": "integer", "minimum": 0, "maximum": 65535, "default": 0, "description": "tcp and udp: every attempt from this port; finds stale entries of connection tracking"},
            "options": {"type": "object", "default": {}, "description": options},
            "follow": {"type": "boolean", "default": false, "description": "the nodes' kernels follow each attempt, up to 5, until one fails, and tell its way: translations, nodes, and where and by what it was dropped. Takes 8 s each. Of mtu the packet that is too big, of path the one that got farthest; of ladder and matrix what failed first, sent once more. Not: throughput, path by icmp, dns without a server"},
            "detail": {"type": "string", "enum": ["summary", "full"], "default": "summary", "description": "full adds single attempts and histograms"}
        }
    });
    sending(
        NAME,
        "Send probes as a pod would",
        "Sends TCP, HTTP, DNS, TLS, UDP or ICMP probes from a pod's own network namespace and tells what came of them: by class, \
         errno, stage, time and who said so; per endpoint with exact chances. Use it after diagnose to see the symptom itself, \
         kind ladder to find the first rung that fails, kind matrix to compare neighbours. With follow, what became of the packet on every node. It sends packets and needs the right to.",
        input,
        schema::of::<ProbeAnswer>(answer::PROBE_SCHEMA),
    )
}

pub async fn call<S: Source + Send + 'static>(state: &Arc<State<S>>, arguments: JsonObject, caller: &Caller) -> Reply {
    let input: Input = match input(arguments) {
        Ok(input) => input,
        Err(reply) => return reply,
    };
    let full = match input.detail.as_str() {
        "" | "summary" => false,
        "full" => true,
        other => return Reply::error(format!("detail: {other:?} is not summary or full")),
    };
    if input.count > MAX_COUNT || input.timeout_ms > MAX_TIMEOUT_MS {
        return Reply::error(format!("ask for at most {MAX_COUNT} attempts of at most {MAX_TIMEOUT_MS} ms each"));
    }
    let Ok(_permit) = state.questions.try_acquire() else {
        return Reply::error("too many questions are being answered right now; ask again in a few seconds");
    };
    match probed(state, &request(&input), caller).await {
        Ok(answer) => reply(answer, full),
        Err(why) => Reply::error(why),
    }
}

fn request(input: &Input) -> ProbeRequest {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let mut request = ProbeRequest::new(input.kind, &input.from, &input.to);
    request.family = input.family;
    request.count = Some(input.count).filter(|count| *count > 0);
    request.timeout_ms = Some(input.timeout_ms).filter(|timeout| *timeout > 0);
    request.follow = input.follow;
    (request.interval_us, request.uid, request.mark) = (input.interval_us, input.uid, input.mark);
    let others = input.options.clone();
    request.options = Options {
        path: text(&input.path).or(others.path),
        https: input.https || others.https,
        server_name: text(&input.server_name).or(others.server_name),
        server: text(&input.server).or(others.server),
        source_port: Some(input.source_port).filter(|port| *port > 0).or(others.source_port),
        ..others
    };
    request.parallel =
        Some(input.parallel).filter(|parallel| *parallel > 0).unwrap_or_else(|| request.usual_parallel());
    request
}

async fn probed<S: Source + Send + 'static>(
    state: &Arc<State<S>>,
    request: &ProbeRequest,
    caller: &Caller,
) -> Result<ProbeAnswer, String> {
    let cluster = state.source.cluster().await.map_err(|error| error.to_string())?;
    let plan = probe::plan(request, &cluster).map_err(|error| error.to_string())?;
    let rights = CallerRights { gate: state.gate.as_deref(), caller };
    let asked_by = if caller.user.is_empty() { "MCP".to_owned() } else { format!("{} by MCP", caller.user) };
    let sender = Sender { source: &state.source, cluster, rights: &rights, asked_by: Some(asked_by) };
    let probed = probe::run(&sender, plan).await.map_err(|error| error.to_string())?;
    Ok(answer::build(&probed, state.source.now()))
}

fn reply(mut answer: ProbeAnswer, full: bool) -> Reply {
    let text = format!("{} from {} to {}: {}", answer.kind, answer.from, answer.to, answer.verdict);
    if !full {
        for series in &mut answer.series {
            series.tally.not_kept += series.tally.attempts.len() as u64;
            series.tally.attempts.clear();
        }
        "single attempts left out: ask with detail: full".clone_into(&mut answer.truncated);
    }
    let bytes = if full { FULL_BYTES } else { SUMMARY_BYTES };
    match serde_json::to_value(&answer) {
        Ok(content) => Reply::fitted(&text, content, bytes, "ask for fewer attempts or one family"),
        Err(error) => Reply::fitted(&text, Value::Null, bytes, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_command_line_can_be_said() {
        let asked = json!({"kind": "http", "from": "pod/shop/client", "to": "service/shop/web:80", "path": "/a",
            "options": {"path": "/b", "method": "HEAD", "headers": ["X-A: b"], "expect": [204]}});
        let input: Input = serde_json::from_value(asked).expect("an input");
        let options = request(&input).options;
        assert_eq!((options.path.as_deref(), options.method.as_deref()), (Some("/a"), Some("HEAD")));
        assert_eq!((options.headers, options.expect), (vec!["X-A: b".to_owned()], vec![204]));
        let sent = json!({"kind": "tcp", "from": "node/n1", "to": "node/n2:22", "count": 10, "interval_us": 500,
            "timeout_ms": 20, "uid": 0, "mark": 7});
        let of = |input: Value| request(&serde_json::from_value(input).expect("an input"));
        let kept = of(sent.clone());
        assert_eq!((kept.interval_us, kept.uid, kept.mark), (500, Some(0), Some(7)));
        assert_eq!(kept.parallel, 40, "as many as keep the interval, as on the command line");
        let mut two = sent;
        two["parallel"] = 2.into();
        assert_eq!(of(two).parallel, 2);
        let strange = json!({"kind": "tcp", "from": "a", "to": "b", "options": {"colour": "red"}});
        assert!(
            serde_json::from_value::<Input>(strange).err().is_some_and(|error| error.to_string().contains("colour"))
        );
    }
}
