//! Owns completion: values for the variables of templates, as far as the caller may see them.
//! Does not read resources (`read`).
//! Invariants: at most as many values as the protocol takes; what policy hides is no value; agents come from discovery,
//! sessions and contents from one admitted call.

use std::collections::HashSet;
use std::sync::Arc;

use rmcp::ErrorData;
use rmcp::model::{CompleteRequestParams, CompletionInfo, Reference};
use serde_json::Value;

use super::{listed, settle};
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, Failure};
use crate::mcp::narrowing::Toolset;
use crate::mcp::prompts;
use crate::mcp::refused::protocol_error;
use crate::mcp::routes;
use crate::mcp::tools::knowledge;
use crate::mcp::visit::Visit;

/// Longest beginning of a value that is looked for.
const TYPED_CHARS_MAX: usize = 200;
/// Rows that are asked for.
const ROWS: &str = "100";

/// Completes one argument.
///
/// # Errors
/// Invalid parameters for an unknown template, prompt or variable; what the gateway refuses for load.
pub(crate) async fn complete(visit: &Visit, request: &CompleteRequestParams) -> Result<CompletionInfo, ErrorData> {
    let typed: String = request.argument.value.chars().take(TYPED_CHARS_MAX).collect();
    let said = |name: &str| request.context.as_ref().and_then(|context| context.get_argument(name)).map(String::as_str);
    let values = match &request.r#ref {
        Reference::Prompt(prompt) => of_prompt(visit, &prompt.name).await?,
        Reference::Resource(template) => {
            let variable = Variable::of(&template.uri, &request.argument.name).ok_or_else(|| {
                ErrorData::invalid_params("there is no such template, or it has no such variable", None)
            })?;
            match variable.values(visit, &said).await {
                Ok(values) => values,
                // What may not be seen has no values.
                Err(failure) if failure.is_forbidden() || failure.is_not_found() => Vec::new(),
                Err(failure) => return Err(protocol_error(&failure)),
            }
        }
        _ => return Err(ErrorData::invalid_params("completion is for prompts and resource templates", None)),
    };
    Ok(fitting(values, &typed))
}

/// A variable of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Agent,
    Kind,
    Session,
    Knowledge,
    Content,
    /// Handles and numbers: nobody can guess them, and nobody lists them.
    Opaque,
}

impl Variable {
    fn of(template: &str, name: &str) -> Option<Self> {
        let path = template.split("{?").next().unwrap_or(template);
        match (path, name) {
            ("agno://agents/{id}", "id") => Some(Self::Agent),
            ("agno://sessions/{id}", "id") => Some(Self::Session),
            ("agno://agents/{id}" | "agno://sessions/{id}", "kind") => Some(Self::Kind),
            ("agno://knowledge/{knowledge}/content/{id}", "knowledge") => Some(Self::Knowledge),
            ("agno://knowledge/{knowledge}/content/{id}", "id") => Some(Self::Content),
            ("agno://runs/{id}" | "agno://runs/{id}/output" | "agno://runs/{id}/media/{number}", "id")
            | ("agno://runs/{id}/output", "offset")
            | ("agno://runs/{id}/media/{number}", "number") => Some(Self::Opaque),
            _ => None,
        }
    }

    const fn toolset(self) -> Option<Toolset> {
        match self {
            Self::Agent => Some(Toolset::Agents),
            Self::Session => Some(Toolset::Sessions),
            Self::Knowledge | Self::Content => Some(Toolset::Knowledge),
            Self::Kind | Self::Opaque => None,
        }
    }

    async fn values<'a>(self, visit: &Visit, said: &impl Fn(&str) -> Option<&'a str>) -> Result<Vec<String>, Failure> {
        if self.toolset().is_some_and(|toolset| !visit.narrowing.reads_of(toolset)) {
            return Ok(Vec::new());
        }
        let kind = said("kind").and_then(Kind::parse);
        match self {
            Self::Kind => Ok(Kind::ALL.iter().map(|kind| kind.as_str().to_owned()).collect()),
            Self::Opaque => Ok(Vec::new()),
            Self::Agent => {
                let all = listed(&settle(visit).await);
                let of_kind = all.into_iter().filter(|shown| kind.is_none_or(|kind| shown.found.kind == kind));
                Ok(of_kind.map(|shown| shown.name).collect())
            }
            Self::Session => sessions(visit, kind.unwrap_or(Kind::Agent)).await,
            Self::Knowledge => knowledge::names(visit).await,
            Self::Content => match said("knowledge") {
                Some(knowledge) => contents(visit, knowledge).await,
                None => Ok(Vec::new()),
            },
        }
    }
}

async fn of_prompt(visit: &Visit, name: &str) -> Result<Vec<String>, ErrorData> {
    let known = prompts::listed(&settle(visit).await).iter().any(|shown| shown.slug == name);
    // Messages are anybody's own words.
    if known { Ok(Vec::new()) } else { Err(ErrorData::invalid_params("there is no such prompt", None)) }
}

async fn sessions(visit: &Visit, kind: Kind) -> Result<Vec<String>, Failure> {
    let query = [("type", kind.as_str()), ("limit", ROWS), ("sort_by", "updated_at"), ("sort_order", "desc")];
    let Some(cluster) = visit.clusters.first() else { return Ok(Vec::new()) };
    let page = visit.asker.json(&Ask { query: &query, ..Ask::plain(routes::SESSIONS, cluster, &[]) }).await?;
    Ok(ids(visit, cluster, &page, "session_id"))
}

async fn contents(visit: &Visit, knowledge: &str) -> Result<Vec<String>, Failure> {
    let (cluster, knowledge) = visit.place_or_default("knowledge", knowledge)?;
    let query = [("limit", ROWS), ("knowledge_id", knowledge.as_str())];
    let page = visit.asker.json(&Ask { query: &query, ..Ask::plain(routes::CONTENTS, &cluster, &[]) }).await?;
    let rows = page.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Ok(rows.iter().filter_map(|row| Some(row.get("id")?.as_str()?.to_owned())).collect())
}

fn ids(visit: &Visit, cluster: &Arc<str>, page: &Value, field: &str) -> Vec<String> {
    let rows = page.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| Some(visit.name(cluster, row.get(field)?.as_str()?))).collect()
}

/// The values that have what was typed, those that begin with it first.
fn fitting(values: Vec<String>, typed: &str) -> CompletionInfo {
    let typed = typed.to_lowercase();
    let mut fitting: Vec<(bool, String)> = values
        .into_iter()
        .map(|value| (!value.to_lowercase().starts_with(&typed), value))
        .filter(|(_, value)| value.to_lowercase().contains(&typed))
        .collect();
    fitting.sort_by_key(|(later, _)| *later);
    let mut once = HashSet::with_capacity(fitting.len());
    let mut values: Vec<String> =
        fitting.into_iter().map(|(_, value)| value).filter(|value| once.insert(value.clone())).collect();
    let total = values.len();
    values.truncate(CompletionInfo::MAX_VALUES);
    let mut info = CompletionInfo::default();
    info.has_more = Some(total > values.len());
    info.total = u32::try_from(total).ok();
    info.values = values;
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_begin_with_what_was_typed_come_first_and_are_bounded() {
        let of = |typed| fitting(["my-web", "Web", "web", "other", "web"].map(str::to_owned).to_vec(), typed).values;
        assert_eq!(of("we"), ["Web", "web", "my-web"]);
        assert_eq!(of(""), ["my-web", "Web", "web", "other"]);
        let many = fitting((0..250).map(|n| format!("a{n}")).collect(), "a");
        assert_eq!((many.values.len(), many.total, many.has_more), (100, Some(250), Some(true)));
    }

    #[test]
    fn templates_are_known_with_and_without_their_queries() {
        for (template, name, variable) in [
            ("agno://agents/{id}", "id", Some(Variable::Agent)),
            ("agno://agents/{id}{?kind}", "kind", Some(Variable::Kind)),
            ("agno://sessions/{id}{?kind}", "id", Some(Variable::Session)),
            ("agno://runs/{id}/output{?offset}", "offset", Some(Variable::Opaque)),
            ("agno://knowledge/{knowledge}/content/{id}", "id", Some(Variable::Content)),
            ("agno://agents/{id}", "nope", None),
            ("file:///{id}", "id", None),
        ] {
            assert_eq!(Variable::of(template, name), variable, "{template} {name}");
        }
    }
}
