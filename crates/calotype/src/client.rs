//! The only file that speaks HTTP as a client: plain HTTP to a server of ours.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use calotype_engine::{Error, Event, Submitted};
use calotype_server::ApiKey;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::exit_code::Failure;

/// The largest answer that is taken.
const MOST_BYTES: u64 = 256 << 20;

/// A server by its address.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    agent: Agent,
    api_key: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    error: Error,
}

impl Client {
    /// A client of `url`, `http://host:port`.
    pub fn new(url: &str, api_key: Option<String>) -> Result<Self, Failure> {
        if !url.starts_with("http://") {
            return Err(Failure::Other(format!(
                "{url} is no address that this client can use: give http://HOST:PORT (for https put a proxy in front)"
            )));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .build()
            .into();
        Ok(Self {
            base: url.trim_end_matches('/').to_owned(),
            agent,
            // Server and client may share one variable, and a key may have a name there.
            api_key: api_key.map(|key| ApiKey::from(key).secret().to_owned()),
        })
    }

    /// GET, and the JSON of the answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(self.with_key(self.agent.get(self.url(path))).call())
    }

    /// POST of JSON, and the JSON of the answer.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> Result<T, Failure> {
        let request = self.with_key(self.agent.post(self.url(path)));
        self.answer(request.send_json(body))
    }

    /// POST without a body.
    pub fn act<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(self.with_key(self.agent.post(self.url(path))).send_empty())
    }

    /// Submits a job; class and priority are the server's defaults where they are left out.
    pub fn submit(
        &self,
        request: &impl serde::Serialize,
        class: Option<&str>,
        priority: Option<i32>,
    ) -> Result<Submitted, Failure> {
        let class = class.map(|class| format!("class={}", escaped(class)));
        let priority = priority.map(|priority| format!("priority={priority}"));
        let query: Vec<String> = class.into_iter().chain(priority).collect();
        self.post(&format!("/api/jobs?{}", query.join("&")), request)
    }

    /// The bytes of an artifact.
    pub fn artifact(&self, hash: &str) -> Result<Vec<u8>, Failure> {
        let mut response = self.checked(
            self.with_key(
                self.agent
                    .get(self.url(&format!("/api/artifacts/{}", escaped(hash)))),
            )
            .call(),
        )?;
        response
            .body_mut()
            .with_config()
            .limit(MOST_BYTES)
            .read_to_vec()
            .map_err(|error| self.unreachable(&error))
    }

    /// The events of a job until it ends.
    pub fn events(&self, job: &str) -> Result<Events, Failure> {
        let response = self.checked(
            self.with_key(
                self.agent
                    .get(self.url(&format!("/api/jobs/{}/events", escaped(job)))),
            )
            .call(),
        )?;
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Events {
            lines: BufReader::new(Box::new(reader)),
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn with_key<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.api_key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable {
            url: self.base.clone(),
            reason: error.to_string(),
        }
    }

    fn checked(&self, response: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let mut response = response.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response
            .body_mut()
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        match serde_json::from_str::<Envelope>(&text) {
            Ok(envelope) => Err(envelope.error.into()),
            Err(_) => Err(Failure::Other(format!(
                "{} answered {status} without an error of ours",
                self.base
            ))),
        }
    }

    fn answer<T: DeserializeOwned>(
        &self,
        response: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let mut response = self.checked(response)?;
        let text = response
            .body_mut()
            .with_config()
            .limit(MOST_BYTES)
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::Other(format!("{} answered what is not understood: {error}", self.base))
        })
    }
}

/// Server-sent events, one after the other.
pub struct Events {
    lines: BufReader<Box<dyn std::io::Read>>,
}

impl Iterator for Events {
    type Item = Result<Event, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut data = String::new();
        let mut line = String::new();
        loop {
            line.clear();
            match self.lines.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => {
                    return Some(Err(Failure::Other(format!(
                        "the stream of events broke: {error}"
                    ))));
                }
            }
            let text = line.trim_end_matches(['\n', '\r']);
            if let Some(value) = text.strip_prefix("data:") {
                data.push_str(value.strip_prefix(' ').unwrap_or(value));
            } else if text.is_empty() && !data.is_empty() {
                let event = serde_json::from_str(&data);
                return Some(
                    event.map_err(|error| Failure::Other(format!("an event is not understood: {error}"))),
                );
            }
        }
    }
}

/// Text as one part of a path or of a query: what a person types must not become another route.
pub fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_past_comments_and_split_data() {
        let stream = ": hello\n\nid: 7\nevent: worker\ndata: {\"id\":7,\"at_ms\":1,\"event\":\"worker\",\ndata: \
            \"worker\":\"cpu0\",\"state\":\"ready\"}\n\n";
        let mut events = Events {
            lines: BufReader::new(Box::new(stream.as_bytes())),
        };
        let event = events.next().unwrap().unwrap();
        assert_eq!((event.id, event.kind.name()), (7, "worker"));
        assert!(events.next().is_none());
    }
}
