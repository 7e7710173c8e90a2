"""onnxprune inside other tools. Each module needs its tool and is imported by nothing here."""
