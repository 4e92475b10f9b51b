//! Routes that write.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::reading::visible;
use super::state::{Account, Entry, Repo};
use super::{Answer, Request, State, is_large, json as answer, refuse};

/// Whoever may write below a name.
fn writer(state: &State, request: &Request, owner: &str) -> Result<Account, Box<Answer>> {
    match state.account(&request.headers)? {
        None => Err(Box::new(refuse(StatusCode::UNAUTHORIZED, "", "Invalid username or password."))),
        Some(account) if account.may_write && account.name == owner => Ok(account.clone()),
        Some(_) => {
            let message = "you don't have the rights to write below this name";
            Err(Box::new(refuse(StatusCode::FORBIDDEN, "", message)))
        }
    }
}

pub fn create(state: &mut State, request: &Request) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let user = match state.account(&request.headers) {
        Ok(account) => account.map(|account| account.name.clone()).unwrap_or_default(),
        Err(refusal) => return *refusal,
    };
    let owner = body["organization"].as_str().unwrap_or(&user).to_owned();
    let Some(name) = body["name"].as_str() else {
        return refuse(StatusCode::BAD_REQUEST, "", "no name");
    };
    if let Err(refusal) = writer(state, request, &owner) {
        return *refusal;
    }
    let kind = if body["type"] == "dataset" { "datasets" } else { "models" };
    let id = format!("{owner}/{name}");
    let key = (kind.to_owned(), id.clone());
    if state.repos.contains_key(&key) {
        let url = format!("http://{}/{id}", request.address);
        return answer(
            StatusCode::CONFLICT,
            &json!({"error": "You already created this model repo", "url": url}),
        );
    }
    let private = body["visibility"] == "private" || body["private"] == true;
    state.repos.insert(key, Repo { private, ..Repo::default() });
    state.commit(kind, &id, "main", Default::default(), "initial commit");
    answer(StatusCode::OK, &json!({"url": format!("http://{}/{id}", request.address), "name": id}))
}

pub fn api(state: &mut State, request: &Request, kind: &str, id: &str, rest: &[&str]) -> Answer {
    inner_api(state, request, kind, id, rest).unwrap_or_else(|refusal| *refusal)
}

fn inner_api(
    state: &mut State,
    request: &Request,
    kind: &str,
    id: &str,
    rest: &[&str],
) -> Result<Answer, Box<Answer>> {
    let repo = visible(state, request, kind, id)?;
    writer(state, request, id.split('/').next().unwrap_or_default())?;
    let missing = |branch: &str| {
        let message = format!("Invalid rev id: {branch}");
        Box::new(refuse(StatusCode::NOT_FOUND, "RevisionNotFound", &message))
    };
    match rest {
        ["branch", branch] if repo.branches.contains_key(*branch) => {
            Ok(refuse(StatusCode::CONFLICT, "", "Reference already exists"))
        }
        ["branch", branch] => {
            let commit = repo.branches["main"].clone();
            state.repo(kind, id).branches.insert((*branch).into(), commit);
            Ok(answer(StatusCode::CREATED, &json!({})))
        }
        ["preupload", branch] => {
            let commit = repo.branches.get(*branch).ok_or_else(|| missing(branch))?;
            Ok(preupload(request, &repo, commit))
        }
        ["commit", branch] => {
            let commit = repo.branches.get(*branch).ok_or_else(|| missing(branch))?;
            let entries = repo.commits[commit].clone();
            Ok(commit_to(state, request, kind, id, branch, entries))
        }
        _ => Ok(refuse(StatusCode::NOT_FOUND, "", "no such route")),
    }
}

/// How each file is to come.
fn preupload(request: &Request, repo: &Repo, commit: &str) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let there = &repo.commits[commit];
    let ignored = match there.get(".gitignore") {
        Some(Entry::Regular(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    let files: Vec<Value> = body["files"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|file| {
            let (path, size) = (file["path"].as_str().unwrap(), file["size"].as_u64().unwrap());
            assert!(BASE64.decode(file["sample"].as_str().unwrap()).unwrap().len() as u64 <= size.min(512));
            json!({
                "path": path,
                "uploadMode": if is_large(path, size) { "lfs" } else { "regular" },
                "shouldIgnore": ignored.lines().any(|line| line == path),
                "oid": there.get(path).map(Entry::etag),
            })
        })
        .collect();
    answer(StatusCode::OK, &json!({"files": files, "commitOid": commit}))
}

fn commit_to(
    state: &mut State,
    request: &Request,
    kind: &str,
    id: &str,
    branch: &str,
    mut entries: std::collections::BTreeMap<String, Entry>,
) -> Answer {
    let text = String::from_utf8_lossy(&request.body);
    let mut message = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            return refuse(StatusCode::BAD_REQUEST, "", "a line is no JSON");
        };
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") => message = value["summary"].as_str().unwrap_or_default().to_owned(),
            Some("file") if value["encoding"] == "base64" => {
                let bytes = BASE64.decode(value["content"].as_str().unwrap_or_default()).unwrap_or_default();
                if is_large(&path, bytes.len() as u64) && !bytes.is_empty() {
                    return refuse(StatusCode::BAD_REQUEST, "", "a large file is not in storage");
                }
                entries.insert(path, Entry::Regular(bytes));
            }
            Some("lfsFile") => {
                let oid = value["oid"].as_str().unwrap_or_default();
                let Some(bytes) = state.objects.get(oid) else {
                    return refuse(
                        StatusCode::BAD_REQUEST,
                        "",
                        "LFS pointer pointed to a file that does not exist",
                    );
                };
                let size = bytes.len() as u64;
                entries.insert(path, Entry::Large { sha256: oid.into(), size });
            }
            _ => return refuse(StatusCode::BAD_REQUEST, "", "a line is not understood"),
        }
    }
    if message.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "", "a commit needs a summary");
    }
    let commit = state.commit(kind, id, branch, entries, &message);
    let url = format!("http://{}/{id}/commit/{commit}", request.address);
    answer(
        StatusCode::OK,
        &json!({"success": true, "commitOid": commit, "commitUrl": url, "pullRequestUrl": null}),
    )
}
