//! On loopback only this machine's own names are answered. A web page whose name is made to resolve to 127.0.0.1 (DNS rebinding)
//! is of the same origin as whatever `kubectl port-forward` has open there, and may ask it as somebody nameless; what it cannot
//! choose is that its browser sends the page's name as `Host`, and as `Origin` (RFC 6454, 7) with every POST.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::api::Refused;

/// Every route of the router asks for a `Host` of loopback, or one that is allowed, and for no `Origin` elsewhere.
pub(super) fn only(router: Router, allowed_hosts: &[String]) -> Router {
    router.layer(from_fn_with_state(Arc::<[String]>::from(allowed_hosts), check))
}

async fn check(State(allowed): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), request.uri(), &allowed) {
        None => next.run(request).await,
        Some(why) => Refused(StatusCode::FORBIDDEN, why).into_response(),
    }
}

fn refusal(headers: &HeaderMap, uri: &Uri, allowed: &[String]) -> Option<String> {
    let mut hosts: Vec<String> = headers.get_all(header::HOST).iter().map(text).collect();
    // HTTP/2 has it in `:authority`.
    hosts.extend(uri.authority().map(ToString::to_string));
    if hosts.is_empty() {
        return Some("the request has no Host: send localhost".to_owned());
    }
    if let Some(other) = hosts.iter().find(|host| !is_answered(host, allowed)) {
        return Some(format!(
            "Host {other:?} is not answered on loopback: use localhost, 127.0.0.1 or [::1], or start the server with \
             --allowed-host"
        ));
    }
    let mut origins = headers.get_all(header::ORIGIN).iter().map(text);
    let other = origins.find(|origin| !is_page_of_loopback(origin))?;
    Some(format!("pages of {other:?} are not answered on loopback: use those of localhost, 127.0.0.1 or [::1]"))
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn is_answered(host: &str, allowed: &[String]) -> bool {
    host.parse::<Authority>().is_ok_and(|authority| {
        let names = [authority.host(), authority.as_str()];
        is_loopback(&authority) || allowed.iter().any(|name| names.iter().any(|one| one.eq_ignore_ascii_case(name)))
    })
}

fn is_page_of_loopback(origin: &str) -> bool {
    origin
        .parse::<Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some_and(is_loopback))
}

/// Of whatever port.
fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::post;
    use tower::ServiceExt as _;

    use super::*;

    async fn status(headers: &[(&str, &str)]) -> StatusCode {
        let router = only(Router::new().route("/v1/scan", post(|| async { "ok" })), &["netdiag.example".to_owned()]);
        let mut request = http::Request::post("/v1/scan");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).expect("a request")).await.expect("an answer").status()
    }

    #[tokio::test]
    async fn names_of_this_machine_are_answered() {
        // The first is what the command line sends through its port-forward, the next what curl does.
        for host in ["localhost", "localhost:8080", "LOCALHOST:9", "127.0.0.1:8080", "127.8.9.1", "[::1]:8080"] {
            assert_eq!(status(&[("host", host)]).await, StatusCode::OK, "{host}");
        }
        for host in ["netdiag.example", "Netdiag.Example:80"] {
            assert_eq!(status(&[("host", host)]).await, StatusCode::OK, "{host} is allowed");
        }
    }

    #[tokio::test]
    async fn names_of_others_that_resolve_to_this_machine_are_not() {
        for host in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", ""] {
            assert_eq!(status(&[("host", host)]).await, StatusCode::FORBIDDEN, "{host}");
        }
        assert_eq!(status(&[]).await, StatusCode::FORBIDDEN);
        assert_eq!(status(&[("host", "localhost"), ("host", "evil.example")]).await, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn pages_of_others_are_not_answered_either() {
        for (origin, expected) in [
            ("http://localhost:8080", StatusCode::OK),
            ("http://127.0.0.1", StatusCode::OK),
            ("https://[::1]:8443", StatusCode::OK),
            ("http://evil.example:8080", StatusCode::FORBIDDEN),
            ("null", StatusCode::FORBIDDEN),
            ("localhost", StatusCode::FORBIDDEN),
        ] {
            assert_eq!(status(&[("host", "localhost:8080"), ("origin", origin)]).await, expected, "{origin}");
        }
    }

    #[test]
    fn http_2_says_the_host_in_its_address() {
        let of = |uri: &str| refusal(&HeaderMap::new(), &uri.parse().expect("an address"), &[]);
        assert_eq!(of("http://localhost:8080/v1/scan"), None);
        assert!(of("http://evil.example:8080/v1/scan").is_some_and(|why| why.contains("evil.example:8080")));
    }
}
