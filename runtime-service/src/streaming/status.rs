//! How an exec or attach ended, in the words that kubectl and crictl understand: `metav1.Status` as JSON, or plain text
//! for clients of the older protocols. Pure.

use serde_json::json;

/// The end of an exec or attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The command exited with 0, or the attached container went its way.
    Well,
    Exited(u32),
    /// It could not be done.
    Failed(String),
}

/// In which form the client wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Since `v4.channel.k8s.io`.
    Status,
    /// Before; nothing means success.
    Text,
}

impl End {
    /// Bytes for the error stream.
    pub(super) fn told(&self, form: Form) -> Vec<u8> {
        match (form, self) {
            (Form::Text, Self::Well) => Vec::new(),
            (Form::Text, Self::Exited(code)) => exited(*code).into_bytes(),
            (Form::Text, Self::Failed(why)) => why.clone().into_bytes(),
            (Form::Status, Self::Well) => json!({"metadata": {}, "status": "Success"}).to_string().into_bytes(),
            (Form::Status, Self::Exited(code)) => json!({
                "metadata": {},
                "status": "Failure",
                "message": exited(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string()
            .into_bytes(),
            (Form::Status, Self::Failed(why)) => json!({
                "metadata": {},
                "status": "Failure",
                "message": why,
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            })
            .to_string()
            .into_bytes(),
        }
    }
}

fn exited(code: u32) -> String {
    format!("command terminated with exit code {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_where_clients_look_for_it() {
        let status: serde_json::Value = serde_json::from_slice(&End::Exited(7).told(Form::Status)).expect("JSON");
        assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
        let cause = &status["details"]["causes"][0];
        assert_eq!((&cause["reason"], &cause["message"]), (&"ExitCode".into(), &"7".into()));
    }

    #[test]
    fn an_old_client_reads_success_from_silence() {
        assert_eq!(End::Well.told(Form::Text), b"");
        assert_eq!(End::Exited(3).told(Form::Text), b"command terminated with exit code 3");
        assert_eq!(End::Failed("no".into()).told(Form::Text), b"no");
    }
}
