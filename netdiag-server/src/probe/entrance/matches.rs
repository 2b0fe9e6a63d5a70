//! What satisfies the rules of routes, by their kind. A probe changes nothing, and that chooses what can be asked.

use super::{Asking, below};
use crate::evidence::object::{GrpcMatch, GrpcRule, HttpMatch, HttpRule, MethodMatch, Rule, TlsRule, ValueMatch};

/// What a gRPC server can be asked without changing it (gRPC's doc/health-checking.md).
const HEALTH: (&str, &str) = ("grpc.health.v1.Health", "Check");
pub(super) const HEALTH_PATH: &str = "/grpc.health.v1.Health/Check";

/// A rule of a route by which people come in.
pub(super) trait Enters: Rule {
    /// Protocols of the listeners that take its routes; the first one names them all.
    const PROTOCOLS: &'static [&'static str];
    /// What satisfies it, or why nothing does. `others`: rules of the same route that lead elsewhere.
    fn asking(&self, others: &[&Self]) -> Result<Asking, String>;
}

impl Enters for HttpRule {
    const PROTOCOLS: &'static [&'static str] = &["HTTP", "HTTPS"];

    fn asking(&self, others: &[&Self]) -> Result<Asking, String> {
        // Whether an exact path leads elsewhere.
        let taken = |text: &str| {
            let mut paths = others.iter().flat_map(|rule| &rule.matches).filter_map(|one| one.path.as_ref());
            paths.any(|path| path.kind == "Exact" && path.value == text)
        };
        first(&self.matches, |one| requested(one, taken))
    }
}

impl Enters for GrpcRule {
    const PROTOCOLS: &'static [&'static str] = &["HTTP", "HTTPS"];

    fn asking(&self, others: &[&Self]) -> Result<Asking, String> {
        first(&self.matches, |one| called(one, others))
    }
}

impl Enters for TlsRule {
    const PROTOCOLS: &'static [&'static str] = &["TLS"];

    fn asking(&self, _: &[&Self]) -> Result<Asking, String> {
        Ok(Asking::Tls)
    }
}

/// The first match that a probe can satisfy; else why the first one cannot be. A rule without matches takes everything, as an empty
/// match does.
fn first<M: Default>(matches: &[M], satisfied: impl Fn(&M) -> Result<Asking, String>) -> Result<Asking, String> {
    if matches.is_empty() {
        return satisfied(&M::default());
    }
    let mut why_not = None;
    for one in matches {
        match satisfied(one) {
            Ok(asking) => return Ok(asking),
            Err(why) => why_not = why_not.or(Some(why)),
        }
    }
    Err(why_not.unwrap_or_default())
}

fn requested(one: &HttpMatch, taken: impl Fn(&str) -> bool) -> Result<Asking, String> {
    const WAY_OUT: &str = "try one that fits with --url";
    let method = one.method.clone().filter(|method| method != "GET");
    if let Some(other) = method.as_ref().filter(|method| !["HEAD", "OPTIONS"].contains(&method.as_str())) {
        return Err(format!("it wants the method {other}, and a probe changes nothing"));
    }
    let mut path = match one.path.as_ref().map(|path| (path.kind.as_str(), path.value.as_str())) {
        None => below("/", taken),
        Some(("Exact", value)) => value.to_owned(),
        Some(("" | "PathPrefix", value)) => below(value, taken),
        Some((kind, value)) => return Err(cannot_be(kind, "path", value, WAY_OUT)),
    };
    for (index, parameter) in exact(&one.query_params, "query parameter", WAY_OUT)?.into_iter().enumerate() {
        let between = if index == 0 { '?' } else { '&' };
        path.push_str(&format!("{between}{}={}", escaped(&parameter.0), escaped(&parameter.1)));
    }
    Ok(Asking::Http { path, headers: exact(&one.headers, "header field", WAY_OUT)?, method })
}

/// A call of any other method may change something.
fn called(one: &GrpcMatch, others: &[&GrpcRule]) -> Result<Asking, String> {
    const WAY_OUT: &str = "try one that fits with `netdiag probe http --grpc-health SERVICE`";
    let wanted = one.method.as_ref();
    if let Some(wanted) = wanted.filter(|wanted| !takes_health(wanted)) {
        let text = format!("{}/{}", or_any(&wanted.service), or_any(&wanted.method));
        return Err(match wanted.kind.as_str() {
            "" | "Exact" => {
                format!("it wants {text}, and a probe calls {}/{} alone, which changes nothing", HEALTH.0, HEALTH.1)
            }
            kind => cannot_be(kind, "method", &text, WAY_OUT),
        });
    }
    // Rules that lead elsewhere come first where they say more of service and method; one with metadata is met by nothing of ours.
    let mut calls = others.iter().flat_map(|rule| &rule.matches).filter(|other| other.headers.is_empty());
    let mine = said_of(wanted);
    if calls.any(|other| other.method.as_ref().is_some_and(takes_health) && said_of(other.method.as_ref()) > mine) {
        return Err(format!("a probe calls {}/{} alone, and the route leads that elsewhere", HEALTH.0, HEALTH.1));
    }
    Ok(Asking::Grpc { headers: exact(&one.headers, "metadata", WAY_OUT)? })
}

fn takes_health(wanted: &MethodMatch) -> bool {
    ["", "Exact"].contains(&wanted.kind.as_str())
        && ["", HEALTH.0].contains(&wanted.service.as_str())
        && ["", HEALTH.1].contains(&wanted.method.as_str())
}

/// Characters of service and method: the more, the earlier it is met.
fn said_of(wanted: Option<&MethodMatch>) -> (usize, usize) {
    wanted.map_or((0, 0), |wanted| (wanted.service.len(), wanted.method.len()))
}

fn or_any(text: &str) -> &str {
    if text.is_empty() { "*" } else { text }
}

/// Names with the values that they must have.
fn exact(wanted: &[ValueMatch], what: &str, way_out: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |one: &ValueMatch| match one.kind.as_str() {
        "" | "Exact" => Ok((one.name.clone(), one.value.clone())),
        kind => Err(cannot_be(kind, &format!("{what} {}", one.name), &one.value, way_out)),
    };
    wanted.iter().map(pair).collect()
}

fn cannot_be(kind: &str, what: &str, value: &str, way_out: &str) -> String {
    format!("no request is made to fit the {kind} {value:?} of its {what}: {way_out}")
}

/// For a query (RFC 3986, 3.4): what has a meaning there stands as its number.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
