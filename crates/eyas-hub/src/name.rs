//! Names of repositories: `owner/name`, with a file and a revision where they are given.

use std::fmt;

use crate::{Error, Result};

/// The branch that is meant where no revision is named.
pub const DEFAULT_REVISION: &str = "main";

/// What a repository holds, which decides its routes and its folder in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// A model or an adapter.
    Model,
    /// A data set.
    Dataset,
}

impl RepoKind {
    /// The word in routes of the API and in folders of the cache.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before the name in addresses of pages and files.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A repository on the hub: `owner/name[/file][@revision]`.
///
/// ```
/// use eyas_hub::HubName;
/// let name = HubName::parse("tiiuae/falcon-7b@refs/pr/1").unwrap();
/// assert_eq!((name.id(), name.revision()), ("tiiuae/falcon-7b", "refs/pr/1"));
/// let name = HubName::parse("someone/quantised/model.Q4_1.gguf").unwrap();
/// assert_eq!(name.file(), Some("model.Q4_1.gguf"));
/// assert!(HubName::parse("./a-folder").is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    id: String,
    file: Option<String>,
    revision: Option<String>,
}

impl HubName {
    /// Reads a name; `None` where the text cannot be one, such as a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return None;
        }
        let mut parts = path.splitn(3, '/');
        let (owner, name, file) = (parts.next()?, parts.next()?, parts.next());
        if !is_part(owner) || !is_part(name) || owner.len() + name.len() > 95 {
            return None;
        }
        if file.is_some_and(|file| !is_inside(file)) {
            return None;
        }
        Some(Self {
            id: format!("{owner}/{name}"),
            file: file.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }

    /// A repository that is written to: a name without a file or a revision.
    ///
    /// # Errors
    /// When the text is no such name.
    pub fn repository(text: &str) -> Result<Self> {
        match Self::parse(text) {
            Some(name) if name.file.is_none() && name.revision.is_none() => Ok(name),
            _ => Err(Error::Name(text.into())),
        }
    }

    /// `owner/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The file in the repository, if one was named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The branch, tag or commit; `main` where none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// Whether the revision is a whole commit hash, whose files never change.
    pub(crate) fn is_pinned(&self) -> bool {
        is_commit(self.revision())
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// A commit hash in full.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A path that stays inside the folder that it is joined to.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Half of a name, by the hub's own rules.
fn is_part(part: &str) -> bool {
    let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let at_the_edge = |part: &str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
    letters && !part.is_empty() && !at_the_edge(part) && !part.contains("--") && !part.contains("..")
}

fn is_revision(revision: &str) -> bool {
    is_inside(revision) && !revision.contains(|c: char| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hub_would_refuse_is_no_name() {
        for text in [
            "falcon",
            "/a/b",
            "a//b",
            "../a",
            "./a",
            "a/..",
            "a/b--c",
            "a/.b",
            "a/b.",
            "a b/c",
            "a\\b/c",
            "a/b/../../etc/passwd",
            "a/b@",
            "a/b@../../x",
            "a/b/c:d",
            "runs/",
        ] {
            assert_eq!(HubName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_printed_as_it_was_typed() {
        for text in ["a/b", "a/b@v1.0", "a/b/data/train.jsonl@refs/convert/parquet"] {
            assert_eq!(HubName::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn only_a_whole_hash_pins_a_commit() {
        let pinned = |text: &str| HubName::parse(text).unwrap().is_pinned();
        assert!(pinned("a/b@0123456789abcdef0123456789abcdef01234567"));
        assert!(!pinned("a/b@0123456"));
        assert!(!pinned("a/b"));
    }
}
