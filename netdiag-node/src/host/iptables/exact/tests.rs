//! Tables as a node had them, and tables that no kernel would give.
