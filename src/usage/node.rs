//! Owns lenient reading of AgentOS's JSON objects: a field of an unexpected type counts as absent,
//! so that one surprise never hides the tokens beside it. Does not interpret what it reads.

use serde::Deserialize;
use serde_json::value::RawValue;

/// The fields that usage is read from, unparsed. Everything else is skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node<'a> {
    #[serde(borrow)]
    pub(super) event: Field<'a>,
    #[serde(borrow)]
    pub(super) run_id: Field<'a>,
    #[serde(borrow)]
    pub(super) workflow_run_id: Field<'a>,
    #[serde(borrow)]
    pub(super) step_run_id: Field<'a>,
    #[serde(borrow)]
    pub(super) session_id: Field<'a>,
    #[serde(borrow)]
    pub(super) status: Field<'a>,
    #[serde(borrow)]
    pub(super) model: Field<'a>,
    #[serde(borrow)]
    pub(super) id: Field<'a>,
    #[serde(borrow)]
    pub(super) input_tokens: Field<'a>,
    #[serde(borrow)]
    pub(super) output_tokens: Field<'a>,
    #[serde(borrow)]
    pub(super) metrics: Field<'a>,
    #[serde(borrow)]
    pub(super) details: Field<'a>,
    #[serde(borrow)]
    pub(super) member_responses: Field<'a>,
    #[serde(borrow)]
    pub(super) step_results: Field<'a>,
    #[serde(borrow)]
    pub(super) steps: Field<'a>,
    #[serde(borrow)]
    pub(super) step_executor_runs: Field<'a>,
    #[serde(borrow)]
    pub(super) workflow_agent_run: Field<'a>,
    #[serde(borrow)]
    pub(super) tools: Field<'a>,
    #[serde(borrow)]
    pub(super) tool_name: Field<'a>,
}

/// A field that may be absent.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Field<'a>(#[serde(borrow)] Option<&'a RawValue>);

impl<'a> Node<'a> {
    /// Reads one object; `None` when the text is not a JSON object.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        // Without the check a list would be read as the fields in their order.
        text.trim_ascii_start().starts_with('{').then(|| serde_json::from_str(text).ok())?
    }
}

impl<'a> Field<'a> {
    /// The text, when it is a string.
    pub(super) fn text(self) -> Option<String> {
        self.read()
    }

    /// The count, when it is a number that is not negative; fractions are cut.
    pub(super) fn count(self) -> u64 {
        // A float beyond the range saturates.
        self.read::<u64>().or_else(|| self.read::<f64>().map(|float| float as u64)).unwrap_or(0)
    }

    /// The object.
    pub(super) fn node(self) -> Option<Node<'a>> {
        Node::parse(self.0?.get())
    }

    /// The objects of a list; other items are skipped.
    pub(super) fn nodes(self) -> impl Iterator<Item = Node<'a>> {
        let items: Vec<&'a RawValue> = self.read().unwrap_or_default();
        items.into_iter().filter_map(|item| Node::parse(item.get()))
    }

    /// The fields of an object, with their names.
    pub(super) fn fields(self) -> impl Iterator<Item = (String, Field<'a>)> {
        let fields: std::collections::BTreeMap<String, &'a RawValue> = self.read().unwrap_or_default();
        fields.into_iter().map(|(name, value)| (name, Field(Some(value))))
    }

    fn read<T: Deserialize<'a>>(self) -> Option<T> {
        serde_json::from_str(self.0?.get()).ok()
    }
}

/// Finds a string field in JSON that was cut off: its first appearance, which for AgentOS's own
/// ids stands in front of everything that callers or models wrote.
///
/// A quote inside a JSON string is escaped, so content cannot fake a field of this object.
pub(super) fn find_text<'a>(cut: &'a str, field: &str) -> Option<&'a str> {
    let (_, after) = cut.split_once(&format!("\"{field}\":\""))?;
    let (value, _) = after.split_once('"')?;
    (!value.contains('\\')).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_unexpected_types_count_as_absent() {
        let node = Node::parse(
            r#"{"run_id":7,"session_id":null,"model":"m","input_tokens":"3","output_tokens":4.9,"tools":[1,{"tool_name":"t"},[]],"details":[]}"#,
        );
        let node = node.expect("an object");
        assert_eq!((node.run_id.text(), node.session_id.text(), node.model.text()), (None, None, Some("m".to_owned())));
        assert_eq!((node.input_tokens.count(), node.output_tokens.count(), node.id.count()), (0, 4, 0));
        assert_eq!(node.tools.nodes().filter_map(|tool| tool.tool_name.text()).collect::<Vec<_>>(), ["t"]);
        assert_eq!(node.details.fields().count(), 0);
        assert!(Node::parse("[]").is_none() && Node::parse("{").is_none());
    }

    #[test]
    fn counts_are_never_negative_and_saturate() {
        for (text, count) in
            [("-1", 0), ("-1.5", 0), ("1e300", u64::MAX), ("null", 0), ("18446744073709551615", u64::MAX)]
        {
            let json = format!("{{\"input_tokens\":{text}}}");
            assert_eq!(Node::parse(&json).expect("an object").input_tokens.count(), count, "{text}");
        }
    }

    #[test]
    fn content_cannot_fake_an_id_in_a_cut_event() {
        let cut = r#"{"agent_name":"\"run_id\":\"fake\"","run_id":"real","content":"xxxx"#;
        assert_eq!(find_text(cut, "run_id"), Some("real"));
        assert_eq!(find_text(cut, "session_id"), None);
        assert_eq!(find_text(r#"{"run_id":"re"#, "run_id"), None);
    }
}
