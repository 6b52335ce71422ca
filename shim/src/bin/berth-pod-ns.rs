//! The namespace keeper: one order on stdin, one answer on stdout. See `pod_namespaces`.

fn main() {
    if std::env::args().nth(1).as_deref() == Some("failpoints") {
        match berth_shim::failpoint::keeper_listing() {
            Some(names) => print!("{names}"),
            None => std::process::exit(1),
        }
        return;
    }
    if std::env::args().nth(1).as_deref() == Some(berth_shim::pod_first::ARGUMENT) {
        return berth_shim::pod_namespaces::go_on();
    }
    std::process::exit(berth_shim::pod_namespaces::run());
}
