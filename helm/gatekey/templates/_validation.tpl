{{/*
Collects what is invalid across several values and fails with all of it at once. values.schema.json, which
Helm checks first, holds the types and bounds of single values.
*/}}
{{- define "gatekey.validate" -}}
{{- $errors := concat (include "gatekey.databaseErrors" . | fromJsonArray) (include "gatekey.tlsErrors" . | fromJsonArray) (include "gatekey.podErrors" . | fromJsonArray) }}

{{- if and .Values.serviceMonitor.enabled (not .Values.metrics.enabled) }}
{{- $errors = append $errors "serviceMonitor.enabled=true requires metrics.enabled=true." }}
{{- end }}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") }}
{{- $errors = append $errors (printf "service.loadBalancerSourceRanges has no effect with service.type=%s." .Values.service.type) }}
{{- end }}
{{- if and .Values.prometheusRule.enabled (not (.Files.Get "files/rules.yaml")) }}
{{- $errors = append $errors "prometheusRule.enabled=true requires files/rules.yaml, which this copy of the chart lacks." }}
{{- end }}
{{- if and .Values.dashboard.enabled (not (.Files.Get "files/dashboard.json")) }}
{{- $errors = append $errors "dashboard.enabled=true requires files/dashboard.json, which this copy of the chart lacks." }}
{{- end }}

{{- if $errors }}
{{- fail (printf "\n\nInvalid values for gatekey:\n- %s\n" (join "\n- " $errors)) }}
{{- end }}
{{- end }}

{{- define "gatekey.databaseErrors" -}}
{{- $errors := list }}
{{- $database := .Values.database }}
{{- if include "gatekey.sqlite" . }}
{{- if gt (int64 (include "gatekey.replicas" .)) 1 }}
{{- $errors = append $errors (printf "replicaCount=%d is invalid with database.engine=sqlite, which allows one process only. Leave replicaCount unset, or use database.engine=postgres." (int64 .Values.replicaCount)) }}
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- $errors = append $errors "autoscaling.enabled=true is invalid with database.engine=sqlite, which allows one process only. Use database.engine=postgres." }}
{{- end }}
{{- range $name := list "existingSecret" "host" }}
{{- with get $database $name }}
{{- $errors = append $errors (printf "database.%s=%s has no effect with database.engine=sqlite. Unset it, or use database.engine=postgres." $name .) }}
{{- end }}
{{- end }}
{{- else if and $database.host $database.existingSecret }}
{{- $errors = append $errors "database.host and database.existingSecret exclude each other. Set one of them." }}
{{- else if not (or $database.host $database.existingSecret) }}
{{- $errors = append $errors (printf "PostgreSQL needs database.existingSecret, a Secret with the URL, or database.host. Create the Secret and name it:\n    kubectl -n %s create secret generic gatekey-database --from-literal=%s='postgres://user:password@host/database'\n    --set database.existingSecret=gatekey-database\n  To try the chart without a database, use database.engine=sqlite." .Release.Namespace $database.key) }}
{{- end }}
{{- if not $database.host }}
{{- if $database.password.existingSecret }}
{{- $errors = append $errors (printf "database.password.existingSecret=%s has no effect without database.host." $database.password.existingSecret) }}
{{- end }}
{{- range $name := list "sslMode" "sslRootCert" }}
{{- with get $database $name }}
{{- $errors = append $errors (printf "database.%s=%s has no effect without database.host. Put it into the URL." $name .) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $errors }}
{{- end }}

{{- define "gatekey.tlsErrors" -}}
{{- $errors := list }}
{{- $tls := .Values.tls }}
{{- if not $tls.enabled }}
{{- if $tls.existingSecret }}
{{- $errors = append $errors (printf "tls.existingSecret=%s has no effect with tls.enabled=false: the port would be plaintext. Set tls.enabled=true." $tls.existingSecret) }}
{{- end }}
{{- if $tls.certManager.enabled }}
{{- $errors = append $errors "tls.certManager.enabled=true has no effect with tls.enabled=false: the port would be plaintext. Set tls.enabled=true." }}
{{- end }}
{{- if $tls.clientCa.existingSecret }}
{{- $errors = append $errors (printf "tls.clientCa.existingSecret=%s has no effect with tls.enabled=false: clients would not be asked for a certificate. Set tls.enabled=true." $tls.clientCa.existingSecret) }}
{{- end }}
{{- end }}
{{- if $tls.certManager.enabled }}
{{- if $tls.existingSecret }}
{{- $errors = append $errors "tls.certManager.enabled and tls.existingSecret exclude each other. Set one of them." }}
{{- end }}
{{- if not $tls.certManager.issuerRef.name }}
{{- $errors = append $errors "tls.certManager.enabled=true requires tls.certManager.issuerRef.name." }}
{{- end }}
{{- end }}
{{- if and (not .Values.pepper.enabled) .Values.pepper.existingSecret }}
{{- $errors = append $errors (printf "pepper.existingSecret=%s has no effect with pepper.enabled=false. Unset one of them." .Values.pepper.existingSecret) }}
{{- end }}
{{- toJson $errors }}
{{- end }}

{{- define "gatekey.podErrors" -}}
{{- $errors := list }}
{{- $values := .Values }}
{{- $stop := add (int64 $values.preStopSeconds) (int64 $values.config.drainSeconds) }}
{{- if le (int64 (include "gatekey.gracePeriod" .)) (int64 $stop) }}
{{- $errors = append $errors (printf "terminationGracePeriodSeconds=%d is too short: the kubelet would kill calls that may still finish. It must exceed preStopSeconds + config.drainSeconds = %d, as its default does." (int64 $values.terminationGracePeriodSeconds) (int64 $stop)) }}
{{- end }}
{{- if and $values.autoscaling.enabled (gt (int64 $values.autoscaling.minReplicas) (int64 $values.autoscaling.maxReplicas)) }}
{{- $errors = append $errors (printf "autoscaling.minReplicas=%d exceeds autoscaling.maxReplicas=%d." (int64 $values.autoscaling.minReplicas) (int64 $values.autoscaling.maxReplicas)) }}
{{- end }}
{{- $ports := list (int64 $values.ports.grpc) (int64 $values.ports.health) (int64 $values.ports.metrics) }}
{{- if ne (len (uniq $ports)) 3 }}
{{- $errors = append $errors (printf "ports.grpc=%d, ports.health=%d and ports.metrics=%d must differ." (index $ports 0) (index $ports 1) (index $ports 2)) }}
{{- end }}
{{- range $values.extraEnv }}
{{- if hasPrefix "GATEKEY_" .name }}
{{- $errors = append $errors (printf "extraEnv must not set %s: the chart sets it. Use the value for it, most are in config." .name) }}
{{- else if and $values.otel.endpoint (has .name (list "OTEL_EXPORTER_OTLP_ENDPOINT" "OTEL_SERVICE_NAME")) }}
{{- $errors = append $errors (printf "extraEnv must not set %s together with otel.endpoint, which sets it." .name) }}
{{- else if and $values.database.password.existingSecret (eq .name "PGPASSWORD") }}
{{- $errors = append $errors "extraEnv must not set PGPASSWORD together with database.password.existingSecret, which sets it." }}
{{- end }}
{{- end }}
{{- toJson $errors }}
{{- end }}
