//! The CNI contract: call, configuration, result, error.
