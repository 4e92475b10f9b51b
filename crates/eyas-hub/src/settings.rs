//! The environment's settings of Hugging Face's tools, understood as those do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// A user's access token. It is not shown by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token, without the white space around it; `None` where nothing is left or it could be no header.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.into()))
    }

    /// The token itself, for the header that carries it.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

/// Which hub, which cache, who asks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub's address (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The folder of the cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Who asks (`HF_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<Token>,
    /// Whether the token goes with reading too (`HF_HUB_DISABLE_IMPLICIT_TOKEN` keeps it for writing).
    pub token_for_reading: bool,
    /// Nothing is asked of the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The pause before something is tried again; it doubles from try to try.
    pub first_wait: Duration,
}

impl Settings {
    /// From the environment.
    ///
    /// # Errors
    /// When no folder for the cache can be found, or the token's file cannot be read.
    pub fn from_env() -> Result<Self> {
        let home = directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_path_buf());
        Self::from_variables(|name| std::env::var(name).ok(), home.as_deref())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<&Path>) -> Result<Self> {
        let text = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| text(name).map(|value| expand(&value, home));
        let is_on = |name: &str| text(name).is_some_and(|value| is_true(&value));

        let hugging_face = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|folder| folder.join("huggingface")))
            .or_else(|| home.map(|home| home.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hugging_face.as_ref().map(|folder| folder.join("hub")))
            .ok_or(Error::NoCache)?;
        let token = match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => {
                let token = Token::new(&token);
                if token.is_none() {
                    tracing::warn!(
                        "HF_TOKEN is no access token (it has spaces or other signs in it); it is left out"
                    );
                }
                token
            }
            None => match path("HF_TOKEN_PATH").or_else(|| hugging_face.map(|folder| folder.join("token"))) {
                Some(file) => token_of(&file)?,
                None => None,
            },
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Ok(Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache,
            token,
            token_for_reading: !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            first_wait: Duration::from_secs(1),
        })
    }
}

fn token_of(file: &Path) -> Result<Option<Token>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Token::new(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: file.into(), source }),
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_ascii_uppercase().as_str())
}

/// A path with `~` for the home folder.
fn expand(value: &str, home: Option<&Path>) -> PathBuf {
    match (home, value.strip_prefix('~')) {
        (Some(home), Some("")) => home.into(),
        (Some(home), Some(rest)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::from_variables(variable, Some(Path::new("/home/mei"))).unwrap()
    }

    #[test]
    fn folders_are_where_python_has_them() {
        let cache = |variables: &[(&str, &str)]| settings(variables).cache;
        assert_eq!(cache(&[]), Path::new("/home/mei/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]), Path::new("/home/mei/hf/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
    }

    #[test]
    fn the_variable_wins_over_the_file_of_the_token() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).token, Token::new("hf_file"));
        assert_eq!(
            settings(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]).token,
            Token::new("hf_variable")
        );
        assert_eq!(settings(&[("HF_HOME", "/nowhere")]).token, None);
    }

    #[test]
    fn switches_are_words_or_a_one() {
        assert!(settings(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(settings(&[("TRANSFORMERS_OFFLINE", "yes")]).offline);
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!settings(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")]).token_for_reading);
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", settings(&[("HF_TOKEN", "hf_secret")])).contains("hf_secret"));
    }

    #[test]
    fn an_endpoint_has_no_slash_at_its_end() {
        assert_eq!(settings(&[("HF_ENDPOINT", "http://localhost:1/")]).endpoint, "http://localhost:1");
    }
}
