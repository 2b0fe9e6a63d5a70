//! Proof of who asks, for netdiag's server behind a port-forward: what arrives there comes from its own loopback and names nobody.
//!
//! Where the credentials are a token, the token is the proof (TokenReview). Who has a client certificate instead, or a token that only
//! a proxy before the API server knows, or asks in somebody else's name (impersonation), has the API server witness it: it writes into
//! each CertificateSigningRequest who created it, which nobody can choose or change (kubernetes,
//! pkg/registry/certificates/certificates/strategy.go, `PrepareForCreate` and `PrepareForUpdate`). The object is named after the digest
//! of a secret, so that only who knows the secret can point at it, and its signer signs nothing. How old it is the API server's own
//! clock tells: another one that is wrong is what netdiag may be asked about.

use std::time::{Duration, Instant};

use ::kube::api::{DeleteParams, ObjectMeta, PostParams};
use ::kube::client::middleware::AuthLayer;
use ::kube::client::{Body, ConfigExt};
use ::kube::core::Status;
use ::kube::{Api, Config};
use data_encoding::HEXLOWER;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Mutex;
use tower::{BoxError, Layer, ServiceExt};

use super::Access;
use super::error::{RequestError, bounded, innermost};
use super::review::{self, User};
use crate::ask::SourceError;

/// What a bearer begins with that is no token but the secret of a witnessed proof.
const WITNESSED: &str = "netdiag-asker.";
const TOKEN_REFUSED: &str =
    "the API server itself does not accept this token, which may have expired or be known to a proxy alone";
/// Nobody signs for it; those of Kubernetes are `kubernetes.io/…`.
const SIGNER: &str = "netdiag.dev/asker";
/// One of a request has to be named; nobody signs it.
const USAGE: &str = "client auth";
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// For how long an object proves who created it. Their groups are written in it as they were then, and who has no right to delete it
/// leaves that to the API: a pending request goes after 24 h, an approved one after 1 h (kubernetes,
/// pkg/controller/certificates/cleaner/cleaner.go), and where that controller does not run, never.
const PROVES_FOR: SignedDuration = SignedDuration::from_hours(1);
/// A new one is made well before. A machine that was suspended does not know for how long (`CLOCK_MONOTONIC` stands still meanwhile,
/// clock_gettime(2)): the server's 401 tells.
const RENEW_AFTER: Duration = Duration::from_mins(30);

/// Whoever asks from here, with what it takes to prove it again and again.
pub(super) struct Prover {
    access: Access,
    /// Adds a token to requests, and refreshes it when it has to be; none where no token proves who asks.
    tokens: Option<AuthLayer>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The API server itself did not accept this one: a proxy may know it, or a certificate beside it be what counts.
    refused_token: Option<HeaderValue>,
    current: Option<Witnessed>,
    /// The secret of the one before it: whoever is on the way with that proof arrives yet.
    previous: Option<String>,
}

struct Witnessed {
    secret: String,
    since: Instant,
}

impl Prover {
    pub fn new(access: &Access) -> Result<Self, String> {
        Ok(Self { access: access.clone(), tokens: tokens(&access.config)?, kept: Mutex::default() })
    }

    /// The value of `Authorization`.
    pub async fn authorization(&self) -> Result<HeaderValue, String> {
        let token = match &self.tokens {
            Some(layer) => token(layer).await?,
            None => None,
        };
        let mut kept = self.kept.lock().await;
        if let Some(token) = token
            && kept.refused_token.as_ref() != Some(&token)
        {
            return Ok(token);
        }
        if let Some(known) = &kept.current
            && known.since.elapsed() < RENEW_AFTER
        {
            return Ok(bearer(&known.secret));
        }
        if let Some(older) = &kept.previous {
            self.delete(older).await;
        }
        kept.previous = kept.current.take().map(|old| old.secret);
        let mut random = [0; 32];
        SystemRandom::new().fill(&mut random).map_err(|_| "the kernel gives no random numbers".to_owned())?;
        let secret = HEXLOWER.encode(&random);
        let object = object(&secret).map_err(|error| format!("cannot make a request for a certificate: {error}"))?;
        let value = bearer(&secret);
        // Kept before it is there: whoever is stopped while the API server answers withdraws it nevertheless.
        kept.current = Some(Witnessed { secret: secret.clone(), since: Instant::now() });
        if let Err(error) = self.create(&object).await {
            if may_be_there(&error) {
                self.delete(&secret).await;
            }
            kept.current = None;
            // Without a witness a token is all there is: it is tried again next time.
            let had_token = kept.refused_token.take().is_some();
            return Err(words(&error, had_token));
        }
        Ok(value)
    }

    /// This was shown, and not accepted: the next proof is another one. Who shows an older one takes nothing from who shows a newer.
    pub async fn refused(&self, shown: &HeaderValue) {
        let mut kept = self.kept.lock().await;
        if !is_witnessed(shown) {
            kept.refused_token = Some(shown.clone());
        } else if let Some(known) = &kept.current
            && bearer(&known.secret) == *shown
        {
            self.delete(&known.secret).await;
            kept.current = None;
        }
    }

    /// Takes back what was left in the cluster, if something was.
    pub async fn withdraw(&self) {
        let mut kept = self.kept.lock().await;
        let current = kept.current.take().map(|known| known.secret);
        for secret in current.into_iter().chain(kept.previous.take()) {
            self.delete(&secret).await;
        }
    }

    async fn create(&self, object: &CertificateSigningRequest) -> Result<(), RequestError> {
        let parameters = PostParams::default();
        bounded(requests(&self.access).create(&parameters, object)).await.map(drop)
    }

    async fn delete(&self, secret: &str) {
        let parameters = DeleteParams::default();
        // See PROVES_FOR for what becomes of it otherwise.
        let _ = bounded(requests(&self.access).delete(&name_of(secret), &parameters)).await;
    }
}

/// Why there is no object.
fn words(error: &RequestError, had_token: bool) -> String {
    let why = match error {
        RequestError::Forbidden(_) => format!(
            "{error}; credentials without a token that the API server accepts prove it by a CertificateSigningRequest \
             that nobody signs: have the ClusterRole netdiag-asker bound to you, or use a kubeconfig with such a token \
             (kubectl create token)"
        ),
        _ => error.to_string(),
    };
    if had_token { format!("{TOKEN_REFUSED}; {why}") } else { why }
}

/// Whether the API server may have made the object before it failed: one that does not answer in time may make it yet.
fn may_be_there(error: &RequestError) -> bool {
    !matches!(error, RequestError::Forbidden(_) | RequestError::Unauthorized(_) | RequestError::NotServed(_))
}

/// Who sent this bearer; none when the API server does not stand for it.
pub async fn who(access: &Access, sent: &str) -> Result<Option<User>, SourceError> {
    let Some(secret) = sent.strip_prefix(WITNESSED) else { return review::who(access, sent).await };
    match bounded(read(access, &name_of(secret))).await {
        Ok((object, Some(now))) => Ok(creator(object, now)),
        Ok((_, None)) => {
            let why = "cannot check who asks: the API server's answer has no Date, so the proof's age is not known; \
                       use a kubeconfig with a token (kubectl create token)";
            Err(SourceError { message: why.to_owned() })
        }
        Err(RequestError::NotServed(_)) => Ok(None),
        Err(error) => Err(SourceError {
            message: format!(
                "cannot check who asks: {error}; it takes the verb get on \
                 certificatesigningrequests.certificates.k8s.io"
            ),
        }),
    }
}

/// The object, and what time it is by the API server's clock, which kube's typed requests do not tell.
async fn read(access: &Access, name: &str) -> ::kube::Result<(CertificateSigningRequest, Option<Timestamp>)> {
    let request = Request::get(format!("{PATH}/{name}")).body(Body::empty()).expect("digits and letters make a path");
    let (head, body) = access.client.send(request).await?.into_parts();
    let body = body.collect_bytes().await?;
    if !head.status.is_success() {
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        return Err(::kube::Error::Api(status.with_code(head.status.as_u16()).boxed()));
    }
    let object = serde_json::from_slice(&body).map_err(::kube::Error::SerdeError)?;
    Ok((object, date(&head.headers)))
}

/// RFC 9110, 6.6.1; Go's servers send it with every answer.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp())
}

fn requests(access: &Access) -> Api<CertificateSigningRequest> {
    Api::all(access.client.clone())
}

/// None where the token is not that of whoever the request is made as.
fn tokens(config: &Config) -> Result<Option<AuthLayer>, String> {
    if config.auth_info.impersonate.is_some() {
        return Ok(None);
    }
    config.auth_layer().map_err(|error| innermost(&error))
}

/// What the layer adds to a request, if that is a token: an inner service that answers with it.
async fn token(layer: &AuthLayer) -> Result<Option<HeaderValue>, String> {
    let echo = tower::service_fn(|request: Request<Body>| {
        let added = request.headers().get(header::AUTHORIZATION).cloned();
        std::future::ready(Ok::<_, BoxError>(Response::new(added)))
    });
    // Boxed: the compiler cannot tell otherwise that whoever waits for it may move to another thread.
    let answer = layer.layer(echo).oneshot(Request::new(Body::empty())).boxed();
    let answer = answer.await.map_err(|error: BoxError| error.to_string())?;
    Ok(answer.into_body().filter(|value| value.as_bytes().starts_with(b"Bearer ")))
}

fn bearer(secret: &str) -> HeaderValue {
    let mut value =
        HeaderValue::try_from(format!("Bearer {WITNESSED}{secret}")).expect("hexadecimal digits may stand in a header");
    value.set_sensitive(true);
    value
}

/// Else it is a token.
fn is_witnessed(value: &HeaderValue) -> bool {
    let bearer = value.as_bytes().strip_prefix(b"Bearer ");
    bearer.is_some_and(|bearer| bearer.starts_with(WITNESSED.as_bytes()))
}

fn name_of(secret: &str) -> String {
    format!("netdiag-asker-{}", HEXLOWER.encode(digest(&SHA256, secret.as_bytes()).as_ref()))
}

/// The API server checks that it is signed by its own key, which is forgotten here.
fn object(secret: &str) -> Result<CertificateSigningRequest, rcgen::Error> {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "netdiag asker");
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject;
    let pem = parameters.serialize_request(&KeyPair::generate()?)?.pem()?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name_of(secret)), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(vec![USAGE.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// None where it proves nothing, or nothing any more.
fn creator(object: CertificateSigningRequest, now: Timestamp) -> Option<User> {
    let created = object.metadata.creation_timestamp?.0;
    if now.duration_since(created) > PROVES_FOR {
        return None;
    }
    let spec = object.spec;
    let name = spec.username.filter(|name| !name.is_empty() && spec.signer_name == SIGNER)?;
    Some(User {
        name,
        uid: spec.uid.unwrap_or_default(),
        groups: spec.groups.unwrap_or_default(),
        extra: spec.extra.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
