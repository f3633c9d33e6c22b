//! The facts about the server for when it cannot be asked: whether it answers, why not, and what it last said of itself.

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::resp;

/// The lines of `INFO server` that are remembered: what monitors and clients look at first.
const REMEMBERED: [&str; 4] = ["redis_version:", "server_name:", "valkey_version:", "redis_mode:"];

/// The state last seen. The link and the watch attempt to reach the server for as long as the process lives, so what they last
/// found is never older than `upstream_timeout` and a pause between attempts.
pub struct Health {
    down: ArcSwapOption<String>,
    about: ArcSwap<String>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            down: ArcSwapOption::from_pointee("not connected yet".to_owned()),
            about: ArcSwap::from_pointee("redis_version:unknown\r\n".to_owned()),
        }
    }
}

impl Health {
    /// The server has answered, if only by an error.
    pub fn reached(&self) {
        if self.down.load().is_some() {
            self.down.store(None);
        }
    }

    /// The server could not be reached, or was silent for too long.
    pub fn unreachable(&self, why: &str) {
        self.down.store(Some(why.to_owned().into()));
    }

    /// Why the server does not answer; `None`: it does.
    pub fn down(&self) -> Option<String> {
        self.down.load().as_ref().map(|why| why.replace(['\r', '\n'], " "))
    }

    /// Remembers what a reply to `INFO server` says.
    pub fn learn(&self, info: &[u8]) {
        let Some((text, _)) = resp::split_bulk(info) else { return };
        let text = String::from_utf8_lossy(text);
        let lines = text.lines().filter(|line| REMEMBERED.iter().any(|name| line.starts_with(name)));
        let about: String = lines.map(|line| format!("{}\r\n", line.trim())).collect();
        if !about.is_empty() {
            self.about.store(about.into());
        }
    }

    /// The lines of `INFO server` as last heard.
    pub fn about(&self) -> String {
        self.about.load().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_server_is_remembered() {
        let health = Health::default();
        assert_eq!(
            (health.down().as_deref(), &*health.about()),
            (Some("not connected yet"), "redis_version:unknown\r\n")
        );
        let text = "# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:0\r\nredis_mode:standalone\r\n";
        health.learn(format!("${}\r\n{text}\r\n", text.len()).as_bytes());
        health.reached();
        health.learn(b"-LOADING\r\n");
        assert_eq!((health.down(), &*health.about()), (None, "redis_version:7.0.15\r\nredis_mode:standalone\r\n"));
        health.unreachable("cannot\r\nbe reached");
        assert_eq!(health.down().as_deref(), Some("cannot  be reached"));
    }
}
